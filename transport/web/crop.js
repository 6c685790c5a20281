// A crop and its context, drawn: what matters as it is, and the whole picture small. Used by the page and by its worker.
//
// Below each picture is a stamp that says where it belongs (docs/protocol.md, "Crop and context").

import { COLUMNS, ROWS } from "./importance.js";

const STRIP = 16, BLOCK = 8, PER_ROW = 16;
const CROP = 0xb6, CONTEXT = 0x49;
const MOST = 0.6; // of the picture: a larger crop saves nothing
const CONTEXT_WIDTH = 160;
export const CONTEXT_MS = 1000;

/** The least cells that hold a stamp's 128 pixels, in a picture of that size. */
export const leastCells = (width, height) => ({ w: Math.ceil((PER_ROW * BLOCK * COLUMNS) / width), h: Math.ceil((2 * STRIP * ROWS) / height) });

/** The crop to send now: no smaller than the last one, so that encoders seldom begin anew; null for the whole picture. */
export function follow(last, wanted) {
  if (!wanted || wanted.w * wanted.h > MOST * COLUMNS * ROWS) return null;
  const w = Math.max(wanted.w, last?.w ?? 0), h = Math.max(wanted.h, last?.h ?? 0);
  if (w * h > 2 * wanted.w * wanted.h) return wanted;
  const into = (at, size, from, length, most) => Math.min(most - size, Math.max(at, from + length - size), from);
  return { x: into(last?.x ?? wanted.x, w, wanted.x, wanted.w, COLUMNS), y: into(last?.y ?? wanted.y, h, wanted.y, wanted.h, ROWS), w, h };
}

function crc8(bytes) {
  let crc = 0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = ((crc << 1) ^ (crc & 0x80 ? 0x07 : 0)) & 0xff;
  }
  return crc;
}

/** 32 bits, as bytes: kind, left and top, width - 1 and height - 1, CRC-8. */
export function stampOf(cells) {
  const { x, y, w, h } = cells ?? { x: 0, y: 0, w: 1, h: 1 };
  const head = [cells ? CROP : CONTEXT, (x << 4) | y, ((w - 1) << 4) | (h - 1)];
  return [...head, crc8(head)];
}

function stamp(pen, top, cells) {
  pen.fillStyle = "#000";
  pen.fillRect(0, top, pen.canvas.width, STRIP);
  pen.fillStyle = "#fff";
  const bytes = stampOf(cells);
  for (let n = 0; n < 32; n++) {
    if ((bytes[n >> 3] >> (7 - (n & 7))) & 1) pen.fillRect((n % PER_ROW) * BLOCK, top + Math.floor(n / PER_ROW) * BLOCK, BLOCK, BLOCK);
  }
}

function resize(canvas, width, height) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}

/** The even pixels around the cells, as the server lays them back. */
function pixelsOf({ x, y, w, h }, width, height) {
  const even = (value) => value & ~1;
  const left = even(Math.floor((x * width) / COLUMNS)), top = even(Math.floor((y * height) / ROWS));
  const right = Math.min(width, even(Math.ceil(((x + w) * width) / COLUMNS) + 1));
  const bottom = Math.min(height, even(Math.ceil(((y + h) * height) / ROWS) + 1));
  return { left, top, width: even(right - left), height: even(bottom - top) };
}

/** source: a video element or a VideoFrame of width × height. */
export function drawCrop(canvas, source, width, height, cells) {
  const { left, top, width: w, height: h } = pixelsOf(cells, width, height);
  resize(canvas, w, h + STRIP);
  const pen = canvas.getContext("2d", { alpha: false });
  pen.drawImage(source, left, top, w, h, 0, 0, w, h);
  stamp(pen, h, cells);
}

export function drawContext(canvas, source, width, height) {
  const h = Math.max(2, Math.round((CONTEXT_WIDTH * height) / width / 2) * 2);
  resize(canvas, CONTEXT_WIDTH, h + STRIP);
  const pen = canvas.getContext("2d", { alpha: false });
  pen.drawImage(source, 0, 0, width, height, 0, 0, CONTEXT_WIDTH, h);
  stamp(pen, h, null);
}

/** When the next of a kind is due, at so many a second; times in ms. */
export class Due {
  #next = -Infinity;

  constructor(every) { this.every = every; }

  now(at) {
    if (at < this.#next - this.every / 4) return false;
    this.#next = Math.max(this.#next + this.every, at + this.every / 2);
    return true;
  }
}
