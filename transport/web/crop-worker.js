// Cuts crop and context out of the camera's frames beside the page: it goes on while the page is busy or hidden.

import { CONTEXT_MS, Due, drawContext, drawCrop } from "./crop.js";

let cells = null;
const crops = new Due(500), contexts = new Due(CONTEXT_MS);
const canvases = { crop: new OffscreenCanvas(2, 2), context: new OffscreenCanvas(2, 2) };

async function write(writer, canvas, timestamp) {
  const frame = new VideoFrame(canvas, { timestamp, alpha: "discard" });
  try { await writer.write(frame); } finally { frame.close(); }
}

async function run({ readable, crop, context }) {
  const reader = readable.getReader(), cropped = crop.getWriter(), whole = context.getWriter();
  for (;;) {
    const { value: frame, done } = await reader.read();
    if (done) break;
    try {
      const at = performance.now(), { displayWidth: width, displayHeight: height, timestamp } = frame;
      if (contexts.now(at)) {
        drawContext(canvases.context, frame, width, height);
        await write(whole, canvases.context, timestamp);
      }
      if (cells && crops.now(at)) {
        drawCrop(canvases.crop, frame, width, height, cells);
        await write(cropped, canvases.crop, timestamp);
      }
    } finally {
      frame.close();
    }
  }
}

onmessage = ({ data }) => {
  if (data.cells) cells = data.cells;
  if (data.fps) crops.every = 1000 / data.fps;
  if (data.readable) run(data).catch((error) => postMessage({ failed: error.message }));
};
