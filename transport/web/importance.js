// The importance map as every sender reads it: 16 × 9 cells over the whole picture (docs/protocol.md). No page, no wires.

export const VERSION = 1;
export const IMP = 1, RATE = 2, CAPS = 3, STILL = 4, NO_STILL = 5, LOOK = 6;
export const DETECTOR = 3; // of a map's source
export const COLUMNS = 16, ROWS = 9;
const HALF_LIFE_MS = 3000;
const STEPS = [[0.8, 24], [0.6, 12], [0.4, 5]]; // confidence → steps of the quantiser, as every sender does
const TAP = { w: 3 / COLUMNS, h: 3 / ROWS };

/** The box around what a drag or a tap means, inside the picture; in shares of it. */
export function boxOf(from, to) {
  const tapped = Math.abs(from.x - to.x) < 0.02 && Math.abs(from.y - to.y) < 0.02;
  const left = tapped ? from.x - TAP.w / 2 : Math.min(from.x, to.x);
  const top = tapped ? from.y - TAP.h / 2 : Math.min(from.y, to.y);
  const w = tapped ? TAP.w : Math.abs(from.x - to.x);
  const h = tapped ? TAP.h : Math.abs(from.y - to.y);
  const x = Math.min(Math.max(0, left), 1), y = Math.min(Math.max(0, top), 1);
  return { x, y, w: Math.min(left + w, 1) - x, h: Math.min(top + h, 1) - y };
}

/** Reads an IMP or RATE; null for anything else. */
export function read(buffer) {
  const view = new DataView(buffer), size = view.byteLength;
  if (size < 4 || view.getUint8(0) !== VERSION) return null;
  const kind = view.getUint8(1), seq = view.getUint16(2);
  if (kind === RATE && (size === 12 || size === 18)) {
    const rate = { kind: "rate", seq, kbps: view.getUint32(4), fps: view.getUint16(8) / 100, context: null };
    if (size === 18) rate.context = { kbps: view.getUint32(12), fps: view.getUint16(16) / 100 };
    return rate;
  }
  if (kind !== IMP || size !== 16 + COLUMNS * ROWS) return null;
  if (view.getUint8(12) !== COLUMNS || view.getUint8(13) !== ROWS || view.getUint8(14) > 3) return null;
  return {
    kind: "imp", seq, ttl: view.getUint16(8), confidence: view.getUint8(10) / 255, most: view.getUint8(11),
    source: view.getUint8(14), grid: new Uint8Array(buffer.slice(16)), at: performance.now(),
  };
}

/** Steps of the quantiser that a map is worth at a time. */
export function stepsOf(map, at) {
  if (!map) return 0;
  const dared = STEPS.find(([least]) => map.confidence >= least - 0.003)?.[1] ?? 0;
  const stale = Math.max(0, at - map.at - map.ttl);
  const steps = Math.min(dared, map.most) * 0.5 ** (stale / HALF_LIFE_MS);
  return steps >= 1.5 && map.grid.some((v) => v !== map.grid[0]) ? steps : 0;
}

/** The cells that matter at least half as much as the most important: {x, y, w, h}, no smaller than w × h of `least`. */
export function cellsOf(grid, least = { w: 1, h: 1 }) {
  const top = Math.max(...grid);
  let left = COLUMNS, right = -1, up = ROWS, down = -1;
  grid.forEach((value, k) => {
    if (!value || value * 2 < top) return;
    const x = k % COLUMNS, y = Math.floor(k / COLUMNS);
    left = Math.min(left, x); right = Math.max(right, x); up = Math.min(up, y); down = Math.max(down, y);
  });
  if (right < 0) return null;
  const w = Math.min(COLUMNS, Math.max(right + 1 - left, least.w)), h = Math.min(ROWS, Math.max(down + 1 - up, least.h));
  const x = Math.min(COLUMNS - w, Math.max(0, Math.floor((left + right + 1 - w) / 2)));
  const y = Math.min(ROWS - h, Math.max(0, Math.floor((up + down + 1 - h) / 2)));
  return { x, y, w, h };
}
