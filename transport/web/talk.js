// Captions as they come, and the conversation: your words, the reply's words as they stream.

const KEPT = 200; // lines kept in the page
const CAPTION_CHARS = 240;
const CAPTION_HOLD_MS = 7000;
const PAUSE_MS = 1500; // a longer silence starts the caption anew

export class Captions {
  #committed = document.getElementById("committed");
  #partial = document.getElementById("partial");
  #empty = document.getElementById("captions-empty");
  #timer = 0;
  #until = 0; // ms on the session's clock: where the last committed words ended

  partial(text, pts) {
    if (pts - this.#until > PAUSE_MS) this.#committed.textContent = "";
    this.#partial.textContent = text;
    this.#seen();
  }

  commit(text, pts, until) {
    this.#partial.textContent = "";
    const whole = `${this.#committed.textContent} ${text}`.trim();
    const anew = pts - this.#until > PAUSE_MS || whole.length > CAPTION_CHARS;
    this.#committed.textContent = anew ? text : whole;
    this.#until = until || pts;
    this.#seen();
  }

  clear() {
    clearTimeout(this.#timer);
    this.#committed.textContent = this.#partial.textContent = "";
    this.#until = 0;
    this.#empty.hidden = false;
  }

  #seen() {
    this.#empty.hidden = true;
    this.#committed.parentElement.parentElement.scrollTop = 1e6;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => { this.#committed.textContent = ""; }, CAPTION_HOLD_MS);
  }
}

export class Talk {
  #list = document.getElementById("talk");
  #empty = document.getElementById("talk-empty");
  #announce = document.getElementById("announce");
  #open = new Map(); // "from/utterance" -> li of a reply that still streams
  aloud = () => true; // is the reply heard? If not, it is read to screen readers

  get speaking() {
    return this.#open.size > 0;
  }

  mine(text, how) {
    const line = this.#add("me", text);
    if (how) {
      const small = document.createElement("span");
      small.className = "how";
      small.textContent = how;
      line.append(small);
    }
  }

  /** One delta of a reply; `end` closes it. */
  reply(from, utterance, text, end) {
    const key = `${from}/${utterance}`;
    let line = this.#open.get(key);
    if (!line) {
      if (!text.trim() && end) return;
      line = this.#add("it", "");
      line.classList.add("open");
      this.#open.set(key, line);
    }
    line.append(line.textContent ? text : text.trimStart());
    if (end) this.#finish(key, line);
    this.#follow(line);
  }

  aside(text) {
    this.#add("aside", text);
  }

  /** The replies that stream now were cut off. */
  cut() {
    for (const [key, line] of this.#open) {
      line.append(" —");
      this.#finish(key, line);
    }
  }

  clear() {
    this.#open.clear();
    this.#list.replaceChildren();
    this.#empty.hidden = false;
  }

  #finish(key, line) {
    line.classList.remove("open");
    this.#open.delete(key);
    if (!this.aloud()) this.#announce.textContent = line.textContent;
  }

  #add(kind, text) {
    const near = this.#list.scrollHeight - this.#list.scrollTop - this.#list.clientHeight < 80;
    const line = document.createElement("li");
    line.className = kind;
    line.textContent = text;
    this.#list.append(line);
    while (this.#list.children.length > KEPT) this.#list.firstElementChild.remove();
    this.#empty.hidden = true;
    if (near || kind === "me") this.#list.scrollTop = this.#list.scrollHeight;
    return line;
  }

  #follow(line) {
    // a reader who scrolled up is left alone
    if (this.#list.scrollHeight - this.#list.scrollTop - this.#list.clientHeight < line.offsetHeight + 80) {
      this.#list.scrollTop = this.#list.scrollHeight;
    }
  }
}
