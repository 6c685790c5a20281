// What is sent in place of the camera's picture: crop and context on two tracks, or one whose background is held still.

import { CONTEXT_MS, Due, drawContext, drawCrop, follow, leastCells } from "./crop.js";
import { COLUMNS, ROWS, cellsOf } from "./importance.js";

const HELD_MS = 2000, HELD_SCALE = 8;
const MOST_FPS = 30;

/** A canvas and its track; pictures are sent when we say so. */
function made() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 16; // captureStream wants a size
  canvas.getContext("2d", { alpha: false });
  const [track] = canvas.captureStream(0).getVideoTracks();
  track.contentHint = "text"; // fewer pictures before blurred or smaller ones
  return { canvas, track };
}

/** Crop and context by canvas: everywhere. Drawn on the page. */
class CanvasCutter {
  #camera;
  #crop = made();
  #context = made();
  #contexts = new Due(CONTEXT_MS);
  #timer = 0;
  #cells = null;
  #fps = 2;

  constructor(camera) {
    this.#camera = camera;
    this.tracks = { crop: this.#crop.track, context: this.#context.track };
    this.way = "canvas";
    this.#draw();
  }

  set({ cells, fps }) {
    this.#cells = cells;
    this.#fps = fps;
  }

  #draw() {
    const { videoWidth: width, videoHeight: height } = this.#camera;
    if (width && this.#cells) {
      if (this.#contexts.now(performance.now())) {
        drawContext(this.#context.canvas, this.#camera, width, height);
        this.#context.track.requestFrame();
      }
      drawCrop(this.#crop.canvas, this.#camera, width, height, this.#cells);
      this.#crop.track.requestFrame();
    }
    this.#timer = setTimeout(() => this.#draw(), 1000 / this.#fps);
  }

  stop() {
    clearTimeout(this.#timer);
    for (const track of Object.values(this.tracks)) track.stop();
  }
}

/** … by frames in a worker, where the browser has them: not slowed down with a page that is hidden or busy. */
class WorkerCutter {
  #worker;
  #input;

  static get known() {
    return "MediaStreamTrackProcessor" in window && "MediaStreamTrackGenerator" in window;
  }

  constructor(raw, failed) {
    this.#input = raw.clone();
    const crop = new MediaStreamTrackGenerator({ kind: "video" }), context = new MediaStreamTrackGenerator({ kind: "video" });
    const { readable } = new MediaStreamTrackProcessor({ track: this.#input });
    this.tracks = { crop, context };
    for (const track of [crop, context]) track.contentHint = "text";
    this.way = "worker";
    this.#worker = new Worker(new URL("crop-worker.js", import.meta.url), { type: "module" });
    this.#worker.onerror = this.#worker.onmessage = () => failed();
    const streams = { readable, crop: crop.writable, context: context.writable };
    this.#worker.postMessage(streams, Object.values(streams));
  }

  set(what) {
    this.#worker.postMessage(what);
  }

  stop() {
    this.#worker.terminate();
    this.#input.stop();
    for (const track of Object.values(this.tracks)) track.stop();
  }
}

/** The region that matters, and all of it small. `cells`: what is cut out now, null before the first map. */
export class Cropped {
  #cutter;
  #camera;

  /** camera: a playing video element of `raw`. changed(): its tracks are others now. */
  constructor({ camera, raw, changed, worker = true }) {
    this.#camera = camera;
    this.cells = null;
    if (worker && WorkerCutter.known) {
      try {
        this.#cutter = new WorkerCutter(raw, () => this.#fallBack(changed));
      } catch { /* a browser that has it otherwise than we know it */ }
    }
    this.#cutter ??= new CanvasCutter(camera);
  }

  #fallBack(changed) {
    if (!(this.#cutter instanceof WorkerCutter)) return;
    this.#cutter.stop();
    this.#cutter = new CanvasCutter(this.#camera);
    changed();
  }

  get tracks() { return this.#cutter.tracks; }

  get way() { return this.#cutter.way; }

  /** What to cut out for a map; null when the whole picture is as good. */
  static choose(last, map, { videoWidth: width, videoHeight: height }) {
    return width ? follow(last, cellsOf(map.grid, leastCells(width, height))) : null;
  }

  set(cells, fps) {
    this.cells = cells;
    this.#cutter.set({ cells, fps: Math.min(MOST_FPS, Math.max(0.2, fps)) });
  }

  stop() { this.#cutter.stop(); }
}

/** One track: the cells that matter as they are, the rest at an eighth of its size and renewed every 2 s. */
export class Held {
  #camera;
  #made = made();
  #small = document.createElement("canvas");
  #heldAt = -Infinity;
  #timer = 0;
  #now;

  /** now(): the map and the pictures a second that hold at the moment. */
  constructor(camera, now) {
    this.#camera = camera;
    this.#now = now;
    const { videoWidth: width, videoHeight: height } = camera;
    this.#made.canvas.width = width; this.#made.canvas.height = height;
    this.#small.width = Math.ceil(width / HELD_SCALE); this.#small.height = Math.ceil(height / HELD_SCALE);
    this.#draw();
  }

  get track() { return this.#made.track; }

  #draw() {
    const { map, fps } = this.#now();
    if (map) this.#paint(map.grid);
    this.#timer = setTimeout(() => this.#draw(), 1000 / Math.min(MOST_FPS, fps || MOST_FPS));
  }

  #paint(grid) {
    const pen = this.#made.canvas.getContext("2d", { alpha: false }), at = performance.now();
    const { width, height } = this.#made.canvas;
    if (at - this.#heldAt > HELD_MS) {
      this.#heldAt = at;
      this.#small.getContext("2d", { alpha: false }).drawImage(this.#camera, 0, 0, this.#small.width, this.#small.height);
    }
    pen.drawImage(this.#small, 0, 0, width, height);
    const top = Math.max(...grid), cell = { w: width / COLUMNS, h: height / ROWS };
    for (let row = 0; row < ROWS; row++) {
      for (let from = 0; from < COLUMNS; from++) {
        let to = from; // neighbours in a row are drawn at once
        while (to < COLUMNS && grid[row * COLUMNS + to] * 2 >= top) to++;
        if (to === from) continue;
        const x = Math.floor(from * cell.w), y = Math.floor(row * cell.h);
        const w = Math.ceil(to * cell.w) - x, h = Math.ceil((row + 1) * cell.h) - y;
        pen.drawImage(this.#camera, x, y, w, h, x, y, w, h);
        from = to;
      }
    }
    this.#made.track.requestFrame?.();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#made.track.stop();
  }
}
