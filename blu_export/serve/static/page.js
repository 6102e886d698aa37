import { colour, letters } from "./palette.js";
import { crop } from "./rle.js";

const $ = (id) => document.getElementById(id);
const photos = [];
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

async function predict(photo) {
  const start = performance.now();
  try {
    for (;;) {
      const answer = await ask("/v1/predict", { method: "POST", body: photo.file, headers: { "Content-Type": photo.file.type || "application/octet-stream" } });
      if (answer.status === 429) {
        if (photo === current) say("The server is busy; this photo waits for its turn…");
        await new Promise((wait) => setTimeout(wait, 1000 * Number(answer.headers.get("Retry-After") || 1)));
        continue;
      }
      const said = await answer.json();
      if (!answer.ok) throw new Error(`${said.error.message} ${said.error.fix}`);
      photo.result = said;
      photo.seconds = (performance.now() - start) / 1000;
      said.detections.forEach((each, index) => Object.assign(each, { index, bitmap: paint(each) }));
      return;
    }
  } catch (error) {
    photo.error = error instanceof TypeError ? "The server cannot be reached." : error.message;
  } finally {
    photo.button.className = photo.error ? "failed" : "";
    if (photo === current) show(photo);
  }
}

// ---- Photos

// One after another: the server's queue is for everyone.
let chain = Promise.resolve();

function add(files) {
  const images = [...files].filter((file) => !file.type || file.type.startsWith("image/"));
  if (!images.length) return say("That is no image.", true);
  for (const file of images) {
    const photo = { file, url: URL.createObjectURL(file), name: file.name || "pasted photo" };
    photo.image = new Image();
    photo.image.src = photo.url;
    photo.image.onload = () => photo === current && draw();
    photos.push(photo);
    addToStrip(photo);
    chain = chain.then(() => predict(photo));
  }
  show(photos[photos.length - images.length]);
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
  item.append(photo.button);
  $("strip").append(item);
  $("strip").hidden = photos.length < 2;
}

function show(photo) {
  current = photo;
  lit = null;
  document.body.classList.remove("empty");
  for (const each of photos) each.button.setAttribute("aria-current", each === photo);
  $("controls").hidden = !photo.result;
  if (photo.error) say(photo.error, true);
  else if (!photo.result) say(`Looking at ${photo.name}…`);
  else listClasses();
  refresh();
}

// ---- What was found

function visible() {
  if (!current?.result) return [];
  const least = $("score").value / 100;
  const off = new Set([...$("legend").querySelectorAll("input:not(:checked)")].map((box) => Number(box.value)));
  return current.result.detections.filter((each) => each.score >= least && !off.has(each.class_id));
}

function listClasses() {
  const counts = new Map();
  for (const each of current.result.detections) counts.set(each.class_id, (counts.get(each.class_id) || 0) + 1);
  const legend = $("legend");
  legend.replaceChildren(legend.firstElementChild);
  for (const [id, count] of [...counts].sort((a, b) => b[1] - a[1])) {
    const label = document.createElement("label"), box = document.createElement("input"), swatch = document.createElement("span");
    Object.assign(box, { type: "checkbox", checked: true, value: id, onchange: refresh });
    swatch.className = "swatch";
    swatch.style.background = colour(id);
    label.append(box, swatch, `${current.result.classes[id - 1]} `, Object.assign(document.createElement("small"), { textContent: count }));
    legend.append(label);
  }
  legend.hidden = !counts.size;
}

function refresh() {
  const list = visible();
  if (current?.result) {
    const all = current.result.detections.length, seconds = current.seconds.toFixed(current.seconds < 1 ? 2 : 1);
    say(all ? `${list.length} of ${all} objects on ${current.name}, in ${seconds}\u00a0s` : `Nothing found on ${current.name}, in ${seconds}\u00a0s`);
  }
  $("found").replaceChildren(...list.map((each) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const swatch = document.createElement("span"), score = document.createElement("span");
    button.type = "button";
    button.dataset.index = each.index;
    swatch.className = "swatch";
    swatch.style.background = colour(each.class_id);
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

// A mask as two pictures of its box: filled, and its outline, wide enough to survive scaling down.
function paint(each) {
  const [top, left, bottom, right] = each.box, width = right - left, height = bottom - top;
  if (!each.mask || width < 1 || height < 1) return null;
  const mask = crop(each.mask, each.box), reach = Math.max(1, Math.round(Math.max(...each.mask.size) / 600));
  const inside = (x, y) => x >= 0 && x < width && y >= 0 && y < height && mask[y * width + x];
  const edge = new Uint8Array(mask.length);
  for (let i = 0; i < mask.length; i++) {
    const x = i % width, y = (i - x) / width;
    edge[i] = mask[i] && !(inside(x - reach, y) && inside(x + reach, y) && inside(x, y - reach) && inside(x, y + reach));
  }
  each.pixels = mask;
  return { fill: picture(mask, width, height, each.class_id), edge: picture(edge, width, height, each.class_id) };
}

function picture(mask, width, height, id) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = colour(id);
  context.fillRect(0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let i = 0; i < mask.length; i++) pixels.data[4 * i + 3] = 255 * mask[i];
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function draw() {
  const canvas = $("canvas"), image = current?.image;
  const shows = Boolean(image?.naturalWidth); // not a TIFF, which the server reads and browsers do not
  canvas.hidden = !shows && !current?.result;
  if (canvas.hidden) return;
  // Sizes of the photo as the server saw it; without an answer, as the browser does.
  const { width, height } = current.result?.image ?? { width: image.naturalWidth, height: image.naturalHeight };
  const room = $("stage").clientWidth, tall = Math.max(320, innerHeight - 220);
  const shown = Math.min(room / width, tall / height, Math.max(1, 480 / Math.max(width, height)));
  const sharp = devicePixelRatio || 1, scale = shown * sharp;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${Math.round(width * shown)}px`;
  const context = canvas.getContext("2d");
  if (shows) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const opacity = $("opacity").value / 100, line = Math.max(1, 1.5 * sharp);
  // The best last, on top; the one in the light after all others.
  const order = visible().reverse();
  if (lit) order.push(...order.splice(order.indexOf(lit), 1));
  for (const each of order) drawMask(context, each, scale, opacity);
  for (const each of order) drawBox(context, each, scale, line, sharp);
}

function drawMask(context, each, scale, opacity) {
  if (!$("masks").checked || !each.bitmap) return;
  const [top, left, bottom, right] = each.box.map((side) => side * scale);
  context.globalAlpha = lit === null ? opacity : lit === each ? Math.min(1, opacity + 0.25) : opacity * 0.35;
  context.drawImage(each.bitmap.fill, left, top, right - left, bottom - top);
  context.globalAlpha = lit === null || lit === each ? 1 : 0.3;
  context.drawImage(each.bitmap.edge, left, top, right - left, bottom - top);
  context.globalAlpha = 1;
}

function drawBox(context, each, scale, line, sharp) {
  const [top, left, bottom, right] = each.box.map((side) => side * scale);
  context.globalAlpha = lit === null || lit === each ? 1 : 0.3;
  context.strokeStyle = colour(each.class_id);
  context.lineWidth = lit === each ? 2 * line : line;
  if ($("boxes").checked || lit === each) context.strokeRect(left, top, right - left, bottom - top);
  if ($("labels").checked || lit === each) {
    const text = `${each.class} ${Math.round(each.score * 100)}`, size = 12 * sharp;
    context.font = `600 ${size}px system-ui, sans-serif`;
    const width = context.measureText(text).width + 8 * sharp, height = size + 5 * sharp;
    const x = Math.max(0, Math.min(left, context.canvas.width - width)), y = Math.max(0, top - height);
    context.fillStyle = colour(each.class_id);
    context.fillRect(x, y, width, height);
    context.fillStyle = letters(each.class_id);
    context.fillText(text, x + 4 * sharp, y + size);
  }
  context.globalAlpha = 1;
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

function point(event) {
  if (!current?.result) return;
  const bounds = $("canvas").getBoundingClientRect(), scale = current.result.image.width / bounds.width;
  const x = Math.floor((event.clientX - bounds.left) * scale), y = Math.floor((event.clientY - bounds.top) * scale);
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

function download() {
  const keep = ({ index, bitmap, pixels, ...rest }) => rest;
  const content = { photo: current.name, ...current.result, detections: visible().map(keep) };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = `${current.name.replace(/\.[^.]*$/, "")}.detections.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

$("file").onchange = (event) => { add(event.target.files); event.target.value = ""; };
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
$("canvas").onpointermove = $("canvas").onpointerdown = point;
$("canvas").onpointerleave = () => { $("tip").hidden = true; light(null); };
$("score").oninput = $("opacity").oninput = () => { showValues(); refresh(); };
for (const id of ["masks", "boxes", "labels"]) $(id).onchange = draw;
$("download").onclick = download;
$("controls").onsubmit = (event) => event.preventDefault();
addEventListener("resize", draw);
$("strip").hidden = true;
showValues();
loadModel().catch(() => say("The server cannot be reached.", true));
