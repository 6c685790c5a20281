// The studio page: what is on, what the connection does, and what is shown.

import { Comeback } from "./comeback.js";
import { Figures } from "./figures.js";
import { Gaze, HINTS } from "./gaze.js";
import { Graphs } from "./graphs.js";
import { Loudness, Media } from "./media.js";
import { Orb } from "./orb.js";
import { Params } from "./params.js";
import { Link, LinkError, iceServers } from "./rtc.js";
import { Starved } from "./starved.js";
import { address, clearNotes, note, remember, shortcuts, theme } from "./shell.js";
import { Captions, Talk } from "./talk.js";

const $ = (id) => document.getElementById(id);
const RETRY_S = [1, 2, 4, 8, 15];
const STATS_MS = 500;
const QUIET_MS = 700; // silence that ends "it speaks"
const IDEAS = { // by how the name of a stage begins
  "agent.": ["what do you see", "neon", "pencil sketch", "what time is it"],
  "diffusion.": ["neon", "oil painting", "charcoal", "blueprint"],
};

const here = address();
const on = { audio: true, video: true, sound: true }; // what the user wants
let state = "idle";
let link = null;
let attempt = 0;
let countdown = 0;

const media = new Media({ ended: (kind) => { on[kind] = false; if (kind === "video") gaze.source(null); link?.replace(kind, null); showDevices(); note(`The ${kind === "video" ? "camera" : "microphone"} was disconnected.`); } });
const captions = new Captions();
const talk = new Talk();
const params = new Params((node, values) => link?.send("params", { node, values }));
const figures = new Figures();
const graphs = new Graphs();
const comeback = new Comeback();
const gaze = new Gaze({ overlay: $("gaze"), picture: $("remote"), words: $("gaze-words"), figures: $("gaze-figures") });
const mine = new Loudness();
const theirs = new Loudness();
const orb = new Orb($("orb"));
talk.aloud = () => on.sound;

// ------------------------------------------------------------------ state

const PILL = { idle: "Not connected", connecting: "Connecting…", live: "Live", waiting: "Reconnecting", failed: "Disconnected" };

function become(next, detail = "") {
  state = next;
  document.body.dataset.state = next;
  $("link-text").textContent = detail || PILL[next];
  const back = next === "connecting" && Boolean(comeback.ticket);
  if (back) $("link-text").textContent = "Reconnecting…";
  $("welcome").hidden = back || (next !== "idle" && next !== "connecting");
  $("trouble").hidden = next !== "waiting" && next !== "failed";
  $("leave").hidden = next === "idle" || next === "failed";
  $("rtt").hidden = next !== "live";
  if (next !== "live") $("recording").hidden = true;
  $("start").disabled = $("start-quiet").disabled = next === "connecting";
  $("start").textContent = next === "connecting" ? "Connecting…" : "Start";
  $("chat-line").disabled = $("chat-send").disabled = next !== "live";
  $("chat-line").placeholder = next === "live" ? "Write a line" : "Press Start to write a line";
  $("gaze").hidden = $("gaze-box").hidden = next !== "live" || !graphs.takes("video");
  if (next !== "live") { $("interrupt").hidden = true; $("veil").hidden = true; $("ideas").replaceChildren(); orb.hide(); }
}

function trouble(error, wait) {
  $("trouble-title").textContent = error.title ?? "Something went wrong";
  $("trouble-text").textContent = wait ? `${error.message} Trying again in ${wait} s.` : error.message;
  $("retry").textContent = wait ? "Reconnect now" : "Try again";
}

// ------------------------------------------------------------------ connecting

async function start({ quiet = false } = {}) {
  if (state === "connecting" || state === "live") return;
  attempt = 0;
  clearNotes();
  become("connecting");
  if (quiet) on.audio = on.video = false;
  await dial();
}

/** Connect to the chosen graph with the devices that it takes, and no others. */
async function dial() {
  for (const kind of ["audio", "video"]) if (!graphs.takes(kind)) media.release(kind);
  const kinds = ["audio", "video"].filter((kind) => on[kind] && graphs.takes(kind));
  for (const words of kinds.length ? await media.acquire(kinds) : []) note(words);
  if (state !== "connecting") return drop();
  for (const kind of kinds) on[kind] = Boolean(media.tracks[kind]);
  showDevices();
  await connect();
}

async function connect() {
  clearInterval(countdown);
  if (state !== "connecting") become("connecting");
  link?.close({ keep: Boolean(comeback.ticket) });
  link = null;
  let mineNow = null;
  try {
    const servers = await iceServers(here.token);
    if (state !== "connecting" || link) return;
    mineNow = new Link({
      token: here.token, servers,
      on: { message: receive, track: show, open: () => {}, lost: (error) => link === mineNow && lost(error), rtt: (ms) => { $("rtt-ms").textContent = `${ms.toFixed(0)} ms`; } },
    });
    link = mineNow;
    gaze.attach(link);
    const { audio } = media.tracks, video = gaze.source(media.tracks.video);
    const same = await link.open({ graph: graphs.chosen, audio, video, resume: comeback.ticket });
    if (link !== mineNow) return;
    attempt = 0;
    if (!same) talk.cut();
    link.send("stats", { every_ms: STATS_MS });
    become("live");
  } catch (error) {
    mineNow?.close({ keep: Boolean(comeback.ticket) });
    if (link !== mineNow) return;
    if (error.gone) { comeback.forget(); link = null; connect(); return; }
    lost(error instanceof LinkError ? error : new LinkError("The session did not start", error.message));
  }
}

function lost(error) {
  link?.close({ keep: Boolean(comeback.ticket) });
  link = null;
  gaze.attach(null);
  clearRemote({ back: error.retry && comeback.ticket });
  if (!error.retry) { become("failed"); trouble(error); $("retry").focus(); return; }
  // the session still runs: the first try is made at once
  if (attempt++ === 0 && comeback.ticket) { connect(); return; }
  let wait = RETRY_S[Math.min(attempt - 1, RETRY_S.length - 1)];
  become("waiting", `Reconnecting in ${wait} s`);
  trouble(error, wait);
  clearInterval(countdown);
  countdown = setInterval(() => {
    wait -= 1;
    if (wait <= 0) { connect(); return; }
    $("link-text").textContent = `Reconnecting in ${wait} s`;
    trouble(error, wait);
  }, 1000);
}

function leave() {
  clearInterval(countdown);
  drop();
  become("idle");
  talk.clear();
  params.clear("The graph's live parameters, once connected.");
  figures.clear();
  on.audio = on.video = true;
  showDevices();
  $("start").focus();
}

function drop() {
  comeback.forget();
  link?.close();
  link = null;
  gaze.attach(null);
  gaze.source(null);
  clearRemote();
  media.release("audio");
  media.release("video");
}

/** back: the same session may go on, with its words. */
function clearRemote({ back = false } = {}) {
  $("remote").srcObject = $("voice").srcObject = null;
  theirs.stop();
  if (back) return;
  captions.clear();
  talk.cut();
}

// ------------------------------------------------------------------ what comes in

function show(track) {
  const element = track.kind === "video" ? $("remote") : $("voice");
  element.srcObject = new MediaStream([track]);
  if (track.kind === "audio") theirs.listen(track);
  element.play().catch((error) => {
    if (error.name === "NotAllowedError") note("The browser holds the sound back until you click in the page.");
  });
}

let turns = false; // the graph decides itself what an interruption is

const HANDLERS = {
  hello({ nodes, resume, missed }) {
    comeback.hello({ resume });
    if (missed) talk.aside(missed === 1 ? "One earlier line is no longer known." : `${missed} earlier lines are no longer known.`);
    params.build(nodes);
    figures.build(nodes);
    ideas(Object.keys(IDEAS).find((kind) => nodes.some(({ use }) => use.startsWith(kind))));
    turns = nodes.some(({ use }) => use === "turn.manager");
  },
  chat({ text, n }) {
    comeback.seen(n);
    if (!comeback.knows(text)) talk.mine(text);
  },
  text({ from, kind, text, pts_ms: pts, until_ms: until, utterance, end, n }) {
    comeback.seen(n);
    if (kind === "partial") captions.partial(text, pts);
    else if (kind === "commit") { captions.commit(text, pts, until); if (text.trim()) talk.mine(text, "heard"); }
    else talk.reply(from, utterance, text, end);
  },
  event({ name, from, fields }) {
    if (name === "speech_start") { $("mic").classList.add("heard"); if (!turns) talk.cut(); }
    if (name === "barge_in") talk.cut();
    if (name === "speech_end") $("mic").classList.remove("heard");
    if (name === "restart") note(`Stage ${from} failed and was restarted: ${fields.error}`);
    if (name === "failed") note(`Stage ${from} failed and is off: ${fields.error}`, { bad: true });
    if (name === "diffusion.unknown_style") note(`It knows no style of that name. It knows: ${fields.known}.`);
    if (name === "recording") {
      $("recording").hidden = !fields.on;
      if (fields.reason) note(`The recording has stopped: ${fields.reason}`, { bad: true });
    }
    if (from === "session" && name === "closed") link?.ends(fields.reason);
  },
  params({ node, values }) { params.update(node, values); },
  stats(message) {
    figures.show(message);
    starved.told(message, performance.now());
    gaze.explain(message.focus);
    link?.received().then((received) => figures.page(received), () => {});
  },
  fetch(message) { gaze.fetch(message); },
  error({ message, about }) { note(about ? `${message} (${about})` : message, { bad: true }); },
};

const receive = (message) => HANDLERS[message.type]?.(message);

function ideas(kind) {
  $("ideas").replaceChildren(...(IDEAS[kind] ?? []).map((words) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = words;
    button.onclick = () => { say(words); $("chat-line").focus(); };
    item.append(button);
    return item;
  }));
}

// ------------------------------------------------------------------ what goes out

function say(text) {
  if (!text || !link?.send("chat", { text })) return;
  comeback.said(text);
  talk.mine(text);
}

function interrupt() {
  if ($("interrupt").hidden || !link?.send("interrupt")) return;
  talk.cut();
  $("interrupt").hidden = true;
  if (document.activeElement === document.body) $("mic").focus();
}

async function toggle(kind) {
  if (kind !== "sound" && !graphs.takes(kind)) return;
  on[kind] = !on[kind];
  if (kind === "sound") $("voice").muted = !on.sound;
  else if (state === "live") {
    if (on[kind] && !media.tracks[kind]) {
      for (const words of await media.acquire([kind])) note(words);
      on[kind] = Boolean(media.tracks[kind]);
      await link?.replace(kind, kind === "video" ? gaze.source(media.tracks.video) : media.tracks[kind]);
    }
    if (kind === "video" && !on.video) { media.release("video"); gaze.source(null); await link?.replace("video", null); }
    // a muted microphone still sends silence, so that the end of your sentence is heard
    if (kind === "audio" && media.tracks.audio) media.tracks.audio.enabled = on.audio;
  }
  showDevices();
}

function showDevices() {
  for (const [id, kind, name] of [["mic", "audio", "Microphone"], ["cam", "video", "Camera"], ["sound", "sound", "Sound"]]) {
    $(id).setAttribute("aria-pressed", String(on[kind]));
    $(id).title = `${name} is ${on[kind] ? "on" : "off"} (${{ mic: "M", cam: "V", sound: "S" }[id]})`;
  }
  $("mic").hidden = !graphs.takes("audio");
  $("cam").hidden = !graphs.takes("video");
  const { audio, video } = media.tracks;
  $("own").srcObject = video ? new MediaStream([video]) : null;
  $("own").parentElement.hidden = !video;
  if (audio) { audio.enabled = on.audio; mine.listen(audio); } else mine.stop();
}

// ------------------------------------------------------------------ four times a second: who speaks, is there a picture

const starved = new Starved();
let loud = -1e9;

setInterval(() => {
  const now = performance.now();
  const level = theirs.read();
  if (level > 0.12) loud = now;
  const speaking = state === "live" && (now - loud < QUIET_MS || talk.speaking);
  if ($("interrupt").hidden === speaking) $("interrupt").hidden = !speaking;
  const count = $("remote").getVideoPlaybackQuality?.().totalVideoFrames ?? 0;
  starved.seen(count, now);
  const live = state === "live", remote = $("remote");
  const off = !on.video && graphs.takes("video");
  if (!live) starved.begin(now); // a connection's first picture is waited for from its start
  if (off || !remote.srcObject || document.hidden) starved.excuse(now);
  const stale = starved.stale(now);
  const frozen = stale && !off && remote.videoWidth > 0; // the last picture stays, under the words of why
  const words = off ? "Your camera is off" : starved.words(now, { camera: !media.tracks.video?.muted });
  remote.hidden = !live || (stale && !frozen);
  remote.classList.toggle("frozen", frozen && Boolean(words));
  $("veil").hidden = !live || !words || (off && !stale);
  $("veil").textContent = words;
  if (live && stale && !frozen) orb.show(() => [mine.read() * on.audio, theirs.read()]);
  else orb.hide();
}, 250);

setInterval(() => { $("mic").style.setProperty("--level", on.audio ? mine.read().toFixed(2) : "0"); }, 80);

// ------------------------------------------------------------------ the page

async function listGraphs() {
  try {
    await graphs.list({ token: here.token, wanted: here.graph });
    showDevices();
    iceServers(here.token).catch(() => {}); // known before Start is pressed
  } catch (error) {
    become("failed");
    trouble(error);
  }
}

$("graph").onchange = () => {
  remember(graphs.chosen);
  graphs.describe();
  showDevices();
  if (state === "live" || state === "waiting") { clearInterval(countdown); comeback.forget(); link?.close(); link = null; talk.clear(); clearRemote(); become("connecting"); dial(); }
};
$("start").onclick = () => start();
$("start-quiet").onclick = () => start({ quiet: true });
$("retry").onclick = async () => { if (!graphs.known) { become("idle"); await listGraphs(); } else { await connect(); } };
$("give-up").onclick = leave;
$("leave").onclick = leave;
$("mic").onclick = () => toggle("audio");
$("cam").onclick = () => toggle("video");
$("sound").onclick = () => toggle("sound");
const showWay = () => { gaze.way = $("gaze-way").value; $("gaze-hint").textContent = HINTS[gaze.way]; };
$("gaze-way").onchange = showWay;
showWay(); // a browser may have kept the choice over a reload
$("interrupt").onclick = interrupt;
$("chat").onsubmit = (event) => { event.preventDefault(); say($("chat-line").value.trim()); $("chat-line").value = ""; };
document.addEventListener("click", () => { const { paused, srcObject } = $("voice"); if (paused && srcObject) $("voice").play().catch(() => {}); });
addEventListener("pagehide", () => {
  if (state === "live") { comeback.leaves(graphs.chosen, on); link?.away(); } else link?.close();
  link = null;
});
addEventListener("pageshow", (event) => { if (event.persisted) leave(); });

/** Another network: the old path is dead or soon will be, and nobody has to wait until that shows. */
function moved() {
  if (state === "live" && comeback.ticket) lost(new LinkError("The network changed", "Connecting over the new one.", { retry: true }));
}
addEventListener("online", moved);
navigator.connection?.addEventListener("typechange", moved);

shortcuts({
  m: () => toggle("audio"), v: () => toggle("video"), s: () => toggle("sound"), t: theme(),
  l: () => (state === "idle" ? start() : leave()), "/": () => $("chat-line").focus(), Escape: interrupt,
});
become("idle");
showDevices();
const before = comeback.reloaded();
if (before) here.graph = before.graph;
listGraphs().then(() => {
  if (!before || state !== "idle") return;
  Object.assign(on, before.on);
  $("voice").muted = !on.sound;
  start();
});
