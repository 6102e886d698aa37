import { color } from "./palette.js";
import { crop } from "./rle.js";
import * as files from "./save.js";
import { paint, render, size, Window } from "./view.js";

const $ = (id) => document.getElementById(id);
const photos = [];
const off = new Set(); // class ids that are switched off, on every photo
const seen = new Window();
let model = null, current = null, lit = null;

// ---- The server

function headers() {
  const key = sessionStorage.getItem("blu-key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, options = {}) {
  for (;;) {
    const answer = await fetch(path, { ...options, headers: { ...options.headers, ...headers() } });
    if (answer.status !== 401) return answer;
    await askForKey();
  }
}

let asking = null;
function askForKey() {
  asking ??= new Promise((done) => {
    const dialog = $("key-dialog");
    dialog.onclose = () => {
      sessionStorage.setItem("blu-key", $("key").value.trim());
      asking = null;
      done();
    };
    dialog.showModal();
  });
  return asking;
}

async function loadModel() {
  const answer = await ask("/v1/model");
  if (!answer.ok) return say(`The server does not answer as it should (${answer.status}).`, true);
  model = await answer.json();
  $("model").textContent = `${model.name} · ${model.classes.join(", ")} · ${model.runtime} on ${model.device}`;
  $("model").title = $("model").textContent;
  $("score").min = Math.floor(model.min_score * 100);
  $("score").value = Math.max(50, $("score").min); // a model may give far less certain ones: there, but not shown at first
  showValues();
}

// What to ask for a closer look: tiles no smaller than the canvas, at most five by five of them.
async function closer(photo) {
  if (!photo.closer) return "";
  await photo.image.decode().catch(() => null);
  const side = Math.max(photo.image.naturalWidth, photo.image.naturalHeight) / 4;
  return `?tile=${Math.max(...(model?.canvas ?? [1024]), Math.ceil(side))}`;
}

async function predict(photo) {
  const start = performance.now();
  photo.error = photo.note = null;
  try {
    let query = await closer(photo);
    for (;;) {
      const answer = await ask(`/v1/predict${query}`, { method: "POST", body: photo.file, headers: { "Content-Type": photo.file.type || "application/octet-stream" } });
      if (answer.status === 429) {
        if (photo === current) say("The server is busy; this photo waits for its turn…");
        await new Promise((wait) => setTimeout(wait, 1000 * Number(answer.headers.get("Retry-After") || 1)));
        continue;
      }
      const said = await answer.json();
      if (answer.status === 400 && query) {
        query = "";
        photo.closer = false;
        photo.note = `As a whole: ${said.error.message}`;
        continue;
      }
      if (!answer.ok) throw new Error(`${said.error.message} ${said.error.fix}`);
      photo.result = said;
      photo.seconds = (performance.now() - start) / 1000;
      said.detections.forEach(prepare);
      return;
    }
  } catch (error) {
    photo.error = error instanceof TypeError ? "The server cannot be reached." : error.message;
  } finally {
    photo.button.className = photo.error ? "failed" : "";
    if (photo === current) show(photo);
  }
}

function prepare(each, index) {
  const [top, left, bottom, right] = each.box;
  each.index = index;
  if (!each.mask || right <= left || bottom <= top) return;
  each.pixels = crop(each.mask, each.box);
  each.bitmap = paint(each, each.pixels);
}

// ---- Photos

// One after another: the server's queue is for everyone.
let chain = Promise.resolve();

function add(files) {
  const images = [...files].filter((file) => !file.type || file.type.startsWith("image/"));
  if (!images.length) return say("That is not an image.", true);
  for (const file of images) {
    const photo = { file, url: URL.createObjectURL(file), name: file.name || "pasted photo", closer: $("tiles").checked };
    photo.image = new Image();
    photo.image.src = photo.url;
    photo.image.onload = () => photo === current && draw();
    photos.push(photo);
    addToStrip(photo);
    chain = chain.then(() => photos.includes(photo) && predict(photo));
  }
  show(photos[photos.length - images.length]);
}

function again(photo) {
  photo.closer = $("tiles").checked;
  photo.button.className = "busy";
  say(`Looking at ${photo.name} again…`);
  chain = chain.then(() => photos.includes(photo) && predict(photo));
}

function addToStrip(photo) {
  const item = document.createElement("li");
  photo.button = document.createElement("button");
  photo.button.type = "button";
  photo.button.className = "busy";
  const image = document.createElement("img");
  image.src = photo.url;
  image.alt = photo.name;
  photo.button.append(image);
  photo.button.onclick = () => show(photo);
  const away = Object.assign(document.createElement("button"), { type: "button", className: "away", textContent: "×" });
  away.setAttribute("aria-label", `Remove ${photo.name}`);
  away.onclick = () => remove(photo);
  item.append(photo.button, away);
  $("strip").append(item);
  photo.item = item;
  showStrip();
}

function showStrip() {
  $("strip").hidden = $("clear").hidden = photos.length < 2;
  $("remove").hidden = photos.length !== 1;
}

function remove(photo) {
  const at = photos.indexOf(photo);
  photos.splice(at, 1);
  photo.item.remove();
  URL.revokeObjectURL(photo.url);
  showStrip();
  if (photo === current) {
    const next = photos[Math.min(at, photos.length - 1)];
    next ? show(next) : empty();
  }
}

function clear() {
  for (const photo of photos.splice(0)) {
    photo.item.remove();
    URL.revokeObjectURL(photo.url);
  }
  showStrip();
  empty();
}

function empty() {
  current = lit = null;
  document.body.classList.add("empty");
  $("controls").hidden = $("canvas").hidden = $("zoom").hidden = $("tip").hidden = true;
  $("found").replaceChildren();
  say("Photos go to this server only. It does not keep them.");
}

function step(by) {
  if (photos.length > 1) show(photos[(photos.indexOf(current) + by + photos.length) % photos.length]);
}

function show(photo) {
  if (photo !== current) seen.reset();
  current = photo;
  lit = null;
  document.body.classList.remove("empty");
  for (const each of photos) each.button.setAttribute("aria-current", each === photo);
  $("controls").hidden = !photo.result;
  if (photo.error) say(photo.error, true);
  else if (!photo.result) say(`Looking at ${photo.name}…`);
  else listClasses();
  $("tiles").checked = photo.closer;
  refresh();
}

// ---- What was found

function visible() {
  if (!current?.result) return [];
  const least = $("score").value / 100;
  return current.result.detections.filter((each) => each.score >= least && !off.has(each.class_id));
}

function listClasses() {
  const counts = new Map();
  for (const each of current.result.detections) counts.set(each.class_id, (counts.get(each.class_id) || 0) + 1);
  const legend = $("legend");
  legend.replaceChildren(legend.firstElementChild);
  for (const [id, count] of [...counts].sort((a, b) => b[1] - a[1])) {
    const label = document.createElement("label"), box = document.createElement("input"), swatch = document.createElement("span");
    Object.assign(box, { type: "checkbox", checked: !off.has(id), value: id });
    box.onchange = () => { box.checked ? off.delete(id) : off.add(id); refresh(); };
    swatch.className = "swatch";
    swatch.style.background = color(id);
    label.append(box, swatch, `${current.result.classes[id - 1]} `, Object.assign(document.createElement("small"), { textContent: count }));
    legend.append(label);
  }
  legend.hidden = !counts.size;
}

function refresh() {
  const list = visible();
  if (current?.result && !current.error) {
    const { detections, tiles } = current.result, seconds = current.seconds.toFixed(current.seconds < 1 ? 2 : 1);
    const what = detections.length ? `${list.length} of ${detections.length} objects` : "Nothing found";
    const where = !tiles ? "" : tiles.windows > 1 ? `, in ${tiles.windows - 1} tiles` : ", no larger than a tile";
    say(`${what} on ${current.name}${where}, in ${seconds}\u00a0s.${current.note ? ` ${current.note}` : ""}`);
  }
  $("found").replaceChildren(...list.map((each) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const swatch = document.createElement("span"), score = document.createElement("span");
    button.type = "button";
    button.dataset.index = each.index;
    swatch.className = "swatch";
    swatch.style.background = color(each.class_id);
    score.textContent = `${Math.round(each.score * 100)} %`;
    button.append(swatch, each.class, score);
    button.onfocus = button.onmouseenter = () => light(each);
    button.onblur = button.onmouseleave = () => light(null);
    item.append(button);
    return item;
  }));
  draw();
}

function light(each) {
  if (lit === each) return;
  lit = each;
  for (const button of $("found").querySelectorAll("button")) {
    button.classList.toggle("lit", each !== null && Number(button.dataset.index) === each.index);
  }
  draw();
}

// ---- Drawing

function options() {
  const shown = Object.fromEntries(["masks", "boxes", "labels"].map((id) => [id, $(id).checked]));
  return { ...shown, opacity: $("opacity").value / 100 };
}

// The best last, on top; the one in the light after all others.
function order() {
  const list = visible().reverse();
  if (lit) list.push(...list.splice(list.indexOf(lit), 1));
  return list;
}

function draw() {
  const canvas = $("canvas"), image = current?.image;
  const shows = Boolean(image?.naturalWidth); // not a TIFF, which the server reads and browsers do not
  canvas.hidden = $("zoom").hidden = !shows && !current?.result;
  if (canvas.hidden) return;
  const { width, height } = size(current);
  const room = $("stage").clientWidth, tall = Math.max(320, innerHeight - 220);
  const shown = Math.min(room / width, tall / height, Math.max(1, 480 / Math.max(width, height)));
  const unit = devicePixelRatio || 1, scale = shown * unit * seen.zoom;
  canvas.width = Math.round(width * shown * unit);
  canvas.height = Math.round(height * shown * unit);
  canvas.style.width = `${Math.round(width * shown)}px`;
  canvas.classList.toggle("zoomed", seen.zoom > 1);
  const offset = [-seen.x * width * scale, -seen.y * height * scale];
  render(canvas.getContext("2d"), current, order(), { ...options(), scale, offset, unit, lit });
  $("zoom-value").textContent = `${Math.round(seen.zoom * 100)} %`;
}

// The smallest object under a point of the photo, by its mask.
function at(x, y) {
  const hits = visible().filter((each) => {
    const [top, left, bottom, right] = each.box;
    if (x < left || x >= right || y < top || y >= bottom) return false;
    return !each.pixels || each.pixels[(y - top) * (right - left) + x - left];
  });
  const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
  return hits.sort((a, b) => area(a) - area(b))[0] ?? null;
}

// A place on the canvas as shares of its width and height.
function share(event) {
  const bounds = $("canvas").getBoundingClientRect();
  return [(event.clientX - bounds.left) / bounds.width, (event.clientY - bounds.top) / bounds.height];
}

// ---- Zooming and moving: wheel, two fingers, the buttons, dragging

const fingers = new Map();

function press(event) {
  fingers.set(event.pointerId, event);
  if (seen.zoom > 1 || fingers.size > 1) $("canvas").setPointerCapture(event.pointerId);
  point(event);
}

function glide(event) {
  const before = fingers.get(event.pointerId);
  if (!before) return point(event);
  const bounds = $("canvas").getBoundingClientRect();
  const apart = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
  };
  const distance = fingers.size === 2 ? apart() : 0;
  fingers.set(event.pointerId, event);
  if (distance) seen.by(apart() / distance, share(event));
  seen.move((event.clientX - before.clientX) / bounds.width / fingers.size, (event.clientY - before.clientY) / bounds.height / fingers.size);
  if (seen.zoom > 1) $("tip").hidden = true;
  draw();
}

function release(event) {
  fingers.delete(event.pointerId);
}

function zoom(factor, where) {
  seen.by(factor, where);
  draw();
}

function point(event) {
  if (!current?.result) return;
  const [shareX, shareY] = share(event), { width, height } = size(current);
  const x = Math.floor((seen.x + shareX / seen.zoom) * width), y = Math.floor((seen.y + shareY / seen.zoom) * height);
  const hit = at(x, y), tip = $("tip"), stage = $("stage").getBoundingClientRect();
  light(hit);
  tip.hidden = !hit;
  if (hit) {
    tip.textContent = `${hit.class} ${Math.round(hit.score * 100)} %`;
    tip.style.left = `${event.clientX - stage.left}px`;
    tip.style.top = `${event.clientY - stage.top}px`;
  }
}

// ---- The rest

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function showValues() {
  $("score-value").textContent = `${$("score").value} %`;
  $("opacity-value").textContent = `${$("opacity").value} %`;
}

async function download(kind) {
  const list = visible(), stem = current.name.replace(/\.[^.]*$/, "");
  if (kind === "json") files.save(files.json(current, list), `${stem}.detections.json`, "application/json");
  if (kind === "csv") files.save(files.csv(current, list), `${stem}.detections.csv`, "text/csv");
  if (kind === "picture") files.save(await files.picture(current, order(), options()), `${stem}.overlay.png`);
  if (kind === "cutouts") files.save(await files.cutouts(current, list), `${stem}.cutouts.zip`);
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !current || event.target.matches("input, dialog *")) return;
  const does = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), Delete: () => remove(current),
    "+": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => { seen.reset(); draw(); },
  }[event.key];
  if (does) {
    event.preventDefault();
    does();
  }
}

for (const id of ["file", "camera"]) $(id).onchange = (event) => { add(event.target.files); event.target.value = ""; };
$("demo").onclick = async () => {
  const answer = await fetch("/static/demo.jpg");
  if (answer.ok) add([new File([await answer.blob()], "demo.jpg", { type: "image/jpeg" })]);
};
addEventListener("paste", (event) => event.clipboardData.files.length && add(event.clipboardData.files));
addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => event.relatedTarget ?? $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
});
$("canvas").onpointerdown = press;
$("canvas").onpointermove = glide;
$("canvas").onpointerup = $("canvas").onpointercancel = release;
$("canvas").onpointerleave = (event) => { release(event); $("tip").hidden = true; light(null); };
$("canvas").addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), share(event));
}, { passive: false });
$("zoom-in").onclick = () => zoom(1.5);
$("zoom-out").onclick = () => zoom(1 / 1.5);
$("zoom-value").onclick = () => { seen.reset(); draw(); };
$("clear").onclick = clear;
$("remove").onclick = () => remove(current);
addEventListener("keydown", key);
$("score").oninput = $("opacity").oninput = () => { showValues(); refresh(); };
for (const id of ["masks", "boxes", "labels"]) $(id).onchange = draw;
$("tiles").onchange = () => current && again(current);
for (const button of $("downloads").querySelectorAll("button")) button.onclick = () => download(button.value);
$("controls").onsubmit = (event) => event.preventDefault();
addEventListener("resize", draw);
showStrip();
showValues();
loadModel().catch(() => say("The server cannot be reached.", true));
