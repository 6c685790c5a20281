// A stream that had pictures, or should have, and has none: since when, and why as far as anybody here knows.

const GAP_MS = 1500; // between two pictures: a longer one is no stream any more
const LATE_MS = 3000; // so long without a stream of pictures is told
const WINDOW_MS = 6000; // whose losses count for the reason

export class Starved {
  #count = 0;
  #last = 0; // when a picture came
  #flowed = 0; // when one last came soon after the one before: a trickle is no stream
  #rows = []; // what the server said of its stages, with its time

  /** A connection begins. */
  begin(now) {
    this.#last = this.#flowed = now;
    this.#rows = [];
  }

  /** Pictures are not wanted, or not looked at: that there are none is told from now on. */
  excuse(now) {
    this.#flowed = now;
  }

  /** count: pictures shown so far. */
  seen(count, now) {
    if (count === this.#count) return;
    if (now - this.#last <= GAP_MS) this.#flowed = now;
    this.#count = count;
    this.#last = now;
  }

  /** One `stats` message. */
  told({ nodes = [] }, now) {
    this.#rows.push({ at: now, nodes });
    while (now - this.#rows[0].at > WINDOW_MS) this.#rows.shift();
  }

  /** Has it been without a picture for a moment? */
  stale(now) {
    return now - this.#last > GAP_MS;
  }

  /** What to say of it; "" while pictures come, or not yet. camera: does it give any? */
  words(now, { camera = true } = {}) {
    const seconds = Math.round((now - this.#flowed) / 1000);
    if (now - this.#flowed < LATE_MS) return "";
    const what = this.stale(now) ? `No picture for ${seconds} s` : `Hardly any pictures for ${seconds} s`;
    return `${what}: ${camera ? this.#why(now) : "your camera gives none"}`;
  }

  #why(now) {
    const after = this.#rows.at(-1);
    if (!after || now - after.at > LATE_MS) return "the server does not say why; the machine is probably too busy";
    const broken = after.nodes.find(({ state }) => state === "failed" || state === "restarting" || state === "stalled");
    if (broken) return `the stage ${broken.name} is ${broken.state}`;
    const [first] = this.#rows;
    const lost = ({ drops = 0, late = 0 }) => drops + late;
    const behind = after.nodes.filter((node) => {
      const before = first.nodes.find(({ name }) => name === node.name);
      return before && lost(node) > lost(before);
    });
    if (behind.length) return `the machine is too busy (${behind.map(({ name }) => name).join(", ")} cannot keep up)`;
    return "none comes through; the network, or the machine of one side, may be too busy";
  }
}
