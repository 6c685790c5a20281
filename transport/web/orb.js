// Where there is no picture: two rings that breathe with your voice and with the reply's.

const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Orb {
  #canvas;
  #frame = 0;
  #levels = [0, 0];

  constructor(canvas) {
    this.#canvas = canvas;
  }

  /** `read()` returns the two loudnesses, yours and the reply's, each 0 to 1. */
  show(read) {
    if (this.#frame) return;
    this.#canvas.hidden = false;
    const step = () => {
      this.#frame = requestAnimationFrame(step);
      read().forEach((now, i) => { this.#levels[i] += (now - this.#levels[i]) * (calm.matches ? 0.04 : 0.22); });
      this.#draw();
    };
    step();
  }

  hide() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#canvas.hidden = true;
  }

  #draw() {
    const [mine, theirs] = this.#levels;
    const pen = this.#canvas.getContext("2d");
    const middle = this.#canvas.width / 2;
    pen.clearRect(0, 0, 2 * middle, 2 * middle);
    const glow = pen.createRadialGradient(middle, middle, 10, middle, middle, 110 + theirs * 110);
    glow.addColorStop(0, `rgb(82 203 214 / ${0.5 + theirs * 0.5})`);
    glow.addColorStop(1, "rgb(82 203 214 / 0)");
    pen.fillStyle = glow;
    pen.fillRect(0, 0, 2 * middle, 2 * middle);
    pen.lineWidth = 3 + mine * 10;
    pen.strokeStyle = `rgb(233 239 242 / ${0.3 + mine * 0.6})`;
    pen.beginPath();
    pen.arc(middle, middle, 120 + mine * 90, 0, 7);
    pen.stroke();
  }
}
