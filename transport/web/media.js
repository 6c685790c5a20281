// The camera and the microphone: asked for separately, so that the lack of one never costs the other.

const AUDIO = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
const VIDEO = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } };
const NAMES = { audio: "microphone", video: "camera" };

/** What went wrong and what to do about it, for people. */
function explain(kind, error) {
  const name = NAMES[kind];
  switch (error.name) {
    case "NotAllowedError":
    case "SecurityError":
      return `No permission to use the ${name}. Allow it in the browser's address bar, then press the ${name} button. Everything else works.`;
    case "NotFoundError":
    case "OverconstrainedError":
      return `No ${name} was found. You can go on without it.`;
    case "NotReadableError":
    case "AbortError":
      return `The ${name} is in use by another program, or it failed to start.`;
    default:
      return `The ${name} did not start: ${error.message || error.name}.`;
  }
}

export class Media {
  tracks = { audio: null, video: null };
  #ended;

  /** `ended(kind)` is called when a device is unplugged or its permission is taken back. */
  constructor({ ended }) {
    this.#ended = ended;
  }

  /** Ask for both at once (one prompt); when that fails, for each alone. Returns the complaints. */
  async acquire(kinds) {
    const missing = kinds.filter((kind) => !this.tracks[kind]);
    if (!missing.length) return [];
    if (!navigator.mediaDevices?.getUserMedia) {
      return ["Camera and microphone need https or localhost. The chat line works."];
    }
    try {
      await this.#get(missing);
      return [];
    } catch (error) {
      if (missing.length === 1) return [explain(missing[0], error)];
    }
    const complaints = [];
    const causes = new Set();
    for (const kind of missing) {
      try {
        await this.#get([kind]);
      } catch (error) {
        complaints.push(explain(kind, error));
        causes.add(error.name);
      }
    }
    if (complaints.length === 2 && causes.size === 1 && causes.has("NotAllowedError")) {
      return ["No permission to use the camera and the microphone. Allow them in the browser's address bar, then press their buttons. You can still write."];
    }
    if (complaints.length === 2 && causes.size === 1 && causes.has("NotFoundError")) {
      return ["No camera and no microphone were found. You can still write."];
    }
    return complaints;
  }

  /** Stop a device: its light goes out. */
  release(kind) {
    const track = this.tracks[kind];
    this.tracks[kind] = null;
    if (track) { track.onended = null; track.stop(); }
  }

  async #get(kinds) {
    const wish = { audio: kinds.includes("audio") && AUDIO, video: kinds.includes("video") && VIDEO };
    const stream = await navigator.mediaDevices.getUserMedia(wish);
    for (const track of stream.getTracks()) {
      this.tracks[track.kind] = track;
      if (track.kind === "video") track.contentHint = "motion";
      track.onended = () => { this.release(track.kind); this.#ended(track.kind); };
    }
  }
}

/** Loudness of an audio track, 0 to 1; `read()` is cheap enough for every animation frame. */
export class Loudness {
  #context = null;
  #source = null;
  #analyser = null;
  #samples = null;

  listen(track) {
    this.stop();
    if (!track) return;
    this.#context ??= new AudioContext();
    if (this.#context.state === "suspended") this.#context.resume().catch(() => {});
    this.#source = this.#context.createMediaStreamSource(new MediaStream([track]));
    this.#analyser = this.#context.createAnalyser();
    this.#analyser.fftSize = 512;
    this.#samples = new Float32Array(512);
    this.#source.connect(this.#analyser);
  }

  read() {
    if (!this.#analyser) return 0;
    this.#analyser.getFloatTimeDomainData(this.#samples);
    let sum = 0;
    for (const x of this.#samples) sum += x * x;
    const db = 10 * Math.log10(sum / 512 + 1e-10);
    return Math.min(1, Math.max(0, (db + 55) / 45)); // -55 dBFS is a quiet room, -10 is loud speech
  }

  stop() {
    this.#source?.disconnect();
    this.#source = this.#analyser = null;
  }
}
