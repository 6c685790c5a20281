// One WebRTC session with the server: offer, data channel, liveness. Knows nothing of the page.

const VERSION = 1;
const TRICKLE_MS = 30; // candidates that come together are sent together
const DISCONNECTED_MS = 1500; // ICE may recover from a moment without answers by itself
const PING_MS = 1000;
const SILENT_MS = 4500; // nothing heard for this long: the server is gone
const OPEN_CAP_MS = 12000;

/** A refusal or a loss, in words for the page. `retry`: worth trying again without the user. */
export class LinkError extends Error {
  constructor(title, message, { retry = false, gone = false } = {}) {
    super(message);
    this.title = title;
    this.retry = retry;
    this.gone = gone; // the session to come back to has ended
  }
}

/** `fetch` with the bearer token, and the server's own words when it refuses. */
export async function call(path, { token, ...init } = {}) {
  const headers = { ...init.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...init, headers });
  } catch {
    throw new LinkError("The server cannot be reached", "It may be starting, or it was stopped.", { retry: true });
  }
  if (answer.ok) return answer.json();
  const body = await answer.json().catch(() => ({}));
  const words = answer.status === 401
    ? `${token ? "The token in this page's address is not known here, has expired or was revoked. " : ""}Open this page with your token at the end of its address: #token=YOUR-TOKEN`
    : body.error || `It answered ${answer.status} ${answer.statusText}.`;
  const full = answer.status === 429 || answer.status === 503;
  const title = full ? "The server is full"
    : answer.status === 401 ? "A token is needed"
    : answer.status < 500 ? "The server refused" : "The server failed";
  throw new LinkError(title, words, { retry: full || answer.status >= 500, gone: answer.status === 410 });
}

/** STUN and TURN servers with credentials that last a while; none when the server cannot say. */
export async function iceServers(token) {
  const known = iceServers.known;
  if (known && performance.now() < known.until) return known.servers;
  try {
    const { iceServers: servers, ttl_s: ttl } = await call("ice-servers", { token });
    iceServers.known = { servers, until: performance.now() + ttl * 500 };
    return servers;
  } catch (error) {
    if (error.title === "A token is needed") throw error;
    return [];
  }
}

/**
 * `on` takes: message(object), track(MediaStreamTrack), open(), lost(LinkError), rtt(ms).
 * `lost` is called at most once, and never after close().
 */
export class Link {
  static #replaced = [];

  /** Close old connections, but that many. */
  static #end(kept) {
    while (Link.#replaced.length > kept) Link.#replaced.shift().close();
  }

  #pc;
  #channel;
  #session = null;
  #token;
  #on;
  #closed = false;
  #heard = performance.now();
  #timer = 0;
  #pings = new Map();
  #nextPing = 1;
  #senders = {};
  #ending = "The server ended the session.";
  #candidates = [];
  #flushing = 0;
  #shaky = 0;
  #crop = null;
  #sent = new Map(); // bytes and time of each outbound stream


  constructor({ token, servers = [], on }) {
    this.#token = token;
    this.#on = on;
    this.#pc = new RTCPeerConnection({ iceServers: servers });
    this.#pc.onicecandidate = ({ candidate }) => this.#found(candidate);
    this.#channel = this.#pc.createDataChannel("penstock", { ordered: true });
    this.realtime = this.#pc.createDataChannel("penstock-rt", { ordered: false, maxRetransmits: 0 });
    this.#channel.onmessage = (event) => this.#receive(event.data);
    this.#channel.onclose = () => this.#lose("The connection was closed", this.#ending);
    this.#pc.ontrack = ({ track, receiver }) => {
      if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0; // live: show it as soon as it is here
      this.#on.track(track);
    };
    this.#pc.onconnectionstatechange = () => {
      clearTimeout(this.#shaky);
      const lost = () => this.#lose("The connection was lost", "No path to the server is left.");
      if (this.#pc.connectionState === "failed") lost();
      if (this.#pc.connectionState === "disconnected") this.#shaky = setTimeout(lost, DISCONNECTED_MS);
    };
  }

  /** Does the server take a crop beside the camera's line? */
  get crops() {
    return this.#crop?.currentDirection === "sendonly";
  }

  get live() {
    return !this.#closed && this.#channel.readyState === "open";
  }

  /**
   * Connect; resolves when the data channel is open, to whether it is the session of `resume`: {token, after}.
   * Without a track the line is still there for later. The offer leaves at once, candidates follow it.
   */
  async open({ graph, audio, video, resume }) {
    for (const [kind, track] of [["audio", audio], ["video", video]]) {
      const wanted = track ?? kind;
      this.#senders[kind] = this.#pc.addTransceiver(wanted, { direction: "sendrecv" }).sender;
    }
    // for what matters in the picture, beside a small context on the first: without a track it costs nothing
    this.#crop = this.#pc.addTransceiver("video", { direction: "sendonly" });
    this.#senders.crop = this.#crop.sender;
    await this.#pc.setLocalDescription(await this.#pc.createOffer());
    const body = {
      sdp: this.#pc.localDescription.sdp, type: "offer", ...(graph && { graph }),
      ...(resume && { resume: resume.token, after: resume.after }),
    };
    const answer = await call("session", {
      method: "POST", token: this.#token, body: JSON.stringify(body), headers: { "Content-Type": "application/json" },
    });
    this.#session = answer.session;
    if (this.#closed) {
      this.#forget();
      throw new LinkError("The session was left", "You left before it began.");
    }
    this.#flush();
    await this.#pc.setRemoteDescription({ type: "answer", sdp: answer.sdp });
    await this.#opened();
    this.#heard = performance.now();
    this.#timer = setInterval(() => this.#ping(), PING_MS);
    Link.#end(0);
    this.#on.open();
    return Boolean(answer.resumed);
  }

  /** Send one message; false when the channel is not open. */
  send(type, fields = {}) {
    if (this.#channel.readyState !== "open") return false;
    this.#channel.send(JSON.stringify({ v: VERSION, type, ...fields }));
    return true;
  }

  /** One binary message on the reliable channel. */
  sendBytes(buffer) {
    if (this.#channel.readyState === "open") this.#channel.send(buffer);
  }

  /** Bound what a line of pictures ("video", "crop") sends; 0 kbps: as the path allows. */
  async tune(line, { kbps, fps }) {
    const sender = this.#senders[line];
    const parameters = sender?.getParameters();
    if (!parameters?.encodings?.length) return;
    const [first] = parameters.encodings;
    if (kbps) first.maxBitrate = kbps * 1000;
    else delete first.maxBitrate;
    first.maxFramerate = Math.max(1, Math.round(fps));
    await sender.setParameters(parameters).catch(() => {}); // between two offers it cannot be set: the next RATE will
  }

  /** What leaves: {kbps, video_kbps, crop_kbps} since the last call, and path_kbps, what the browser believes there is. */
  async sending() {
    const figures = { kbps: 0, video_kbps: 0, crop_kbps: 0, path_kbps: 0 };
    for (const entry of (await this.#pc.getStats()).values()) {
      if (entry.type === "candidate-pair" && entry.nominated && entry.availableOutgoingBitrate) {
        figures.path_kbps = Math.round(entry.availableOutgoingBitrate / 1000);
      }
      if (entry.type !== "outbound-rtp" || entry.kind !== "video") continue;
      const { bytes = entry.bytesSent, at = entry.timestamp } = this.#sent.get(entry.id) ?? {};
      this.#sent.set(entry.id, { bytes: entry.bytesSent, at: entry.timestamp });
      const kbps = entry.timestamp > at ? Math.round(((entry.bytesSent - bytes) * 8) / (entry.timestamp - at)) : 0;
      figures[entry.mid === this.#crop?.mid ? "crop_kbps" : "video_kbps"] += kbps;
      figures.kbps += kbps;
    }
    return figures;
  }

  /** The server says why it is about to close. */
  ends(reason) {
    if (reason && reason !== "closed") this.#ending = `The server ended the session: ${reason}.`;
  }

  /** Put another track (or null) on a line, without a new offer. */
  async replace(kind, track) {
    await this.#senders[kind]?.replaceTrack(track);
  }

  /** Picture figures of this side: {fps, width, height, buffer_ms, lost}. */
  async received() {
    const figures = {};
    for (const entry of (await this.#pc.getStats()).values()) {
      if (entry.type !== "inbound-rtp" || entry.kind !== "video") continue;
      figures.fps = entry.framesPerSecond ?? 0;
      figures.width = entry.frameWidth;
      figures.height = entry.frameHeight;
      figures.lost = entry.packetsLost ?? 0;
      figures.emitted = entry.jitterBufferEmittedCount ?? 0;
      figures.delay_s = entry.jitterBufferDelay ?? 0;
    }
    return figures;
  }

  /** Idempotent. Also tells the server, even while the page is being left. keep: the session is to go on. */
  close({ keep = false } = {}) {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#timer);
    clearTimeout(this.#shaky);
    clearTimeout(this.#flushing);
    // to end it would say goodbye: a connection that another replaces stays until that one is open
    Link.#replaced.push(this.#pc);
    Link.#end(keep ? 1 : 0);
    if (!keep) this.#forget();
  }

  /** The page is being left, perhaps to be loaded again: the server keeps the session for some seconds. */
  away() {
    if (this.#session && !this.#closed) this.#tell(`session/${encodeURIComponent(this.#session)}/reload`, { method: "POST" });
    this.close({ keep: true });
    Link.#end(0); // a browser that quits may not send the line above: without it this goodbye ends the session
  }

  #forget() {
    if (this.#session) this.#tell(`session/${encodeURIComponent(this.#session)}`, { method: "DELETE" });
    this.#session = null;
  }

  #tell(path, init) {
    const headers = { ...init.headers, ...(this.#token && { Authorization: `Bearer ${this.#token}` }) };
    fetch(path, { keepalive: true, ...init, headers }).catch(() => {});
  }

  #lose(title, words) {
    if (this.#closed) return;
    this.close({ keep: true });
    this.#on.lost(new LinkError(title, words, { retry: true }));
  }

  #found(candidate) {
    this.#candidates.push(candidate);
    clearTimeout(this.#flushing);
    this.#flushing = setTimeout(() => this.#flush(), TRICKLE_MS);
  }

  /** Send the candidates so far, as RFC 8840 writes them. Those of the offer's SDP are there already. */
  #flush() {
    if (!this.#session || !this.#candidates.length || this.#closed) return;
    const lines = [], sections = new Map(); // one section a mid: the server bounds how many there are
    let end = false;
    for (const found of this.#candidates.splice(0)) {
      if (!found?.candidate) { end = true; continue; }
      if (!lines.length) lines.push(`a=ice-ufrag:${found.usernameFragment}`);
      const section = sections.get(found.sdpMid) ?? ["m=audio 9 UDP/TLS/RTP/SAVPF 0", `a=mid:${found.sdpMid}`];
      sections.set(found.sdpMid, section);
      section.push(`a=${found.candidate}`);
    }
    lines.push(...[...sections.values()].flat());
    if (end) lines.push("a=end-of-candidates");
    this.#tell(`session/${encodeURIComponent(this.#session)}`, {
      method: "PATCH", body: `${lines.join("\r\n")}\r\n`, headers: { "Content-Type": "application/trickle-ice-sdpfrag" },
    });
  }

  #receive(data) {
    this.#heard = performance.now();
    let message;
    try { message = JSON.parse(data); } catch { return; }
    if (message.v !== undefined && message.v !== VERSION) {
      this.#lose("This page is out of date", `The server speaks version ${message.v}; reload the page.`);
      return;
    }
    if (message.type === "pong") {
      const sent = this.#pings.get(message.id);
      this.#pings.delete(message.id);
      if (sent !== undefined) this.#on.rtt(performance.now() - sent);
      return;
    }
    this.#on.message(message);
  }

  #ping() {
    if (performance.now() - this.#heard > SILENT_MS) {
      this.#lose("The server went silent", "Nothing was heard from it for a few seconds.");
      return;
    }
    const id = this.#nextPing++;
    this.#pings.set(id, performance.now());
    if (this.#pings.size > 8) this.#pings.delete(this.#pings.keys().next().value);
    this.send("ping", { id });
  }

  #opened() {
    return new Promise((resolve, reject) => {
      const cap = setTimeout(() => reject(new LinkError(
        "No way through to the server", "It answered, but no media path opened. A firewall may block UDP.", { retry: true },
      )), OPEN_CAP_MS);
      const done = (settle) => (value) => { clearTimeout(cap); settle(value); };
      if (this.#channel.readyState === "open") return done(resolve)();
      this.#channel.addEventListener("open", done(resolve));
      this.#channel.addEventListener("close", done(() => reject(
        new LinkError("The connection was closed", "The server ended the session.", { retry: true }))));
    });
  }
}
