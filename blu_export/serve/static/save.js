// What was found as files: a picture, cut-outs, JSON, CSV.

import { render, size } from "./view.js";

export function save(content, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export function json(photo, objects) {
  const keep = ({ index, bitmap, pixels, ...rest }) => rest;
  return JSON.stringify({ photo: photo.name, ...photo.result, detections: objects.map(keep) }, null, 1);
}

export function csv(photo, objects) {
  const quoted = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const rows = objects.map((each) => [photo.name, each.class_id, each.class, each.score, ...each.box]);
  return [["photo", "class_id", "class", "score", "y1", "x1", "y2", "x2"], ...rows]
    .map((row) => `${row.map(quoted).join(",")}\r\n`).join("");
}

export function picture(photo, objects, options) {
  const canvas = Object.assign(document.createElement("canvas"), size(photo));
  const unit = Math.max(1, Math.max(canvas.width, canvas.height) / 900);
  render(canvas.getContext("2d"), photo, objects, { ...options, scale: 1, offset: [0, 0], unit, lit: null });
  return png(canvas);
}

// Each object on a transparent background, in one ZIP file.
export async function cutouts(photo, objects) {
  const files = [];
  for (const [number, each] of objects.entries()) {
    const [top, left, bottom, right] = each.box, width = right - left, height = bottom - top;
    if (!each.pixels) continue;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d"), whole = size(photo);
    context.drawImage(photo.image, -left, -top, whole.width, whole.height);
    const pixels = context.getImageData(0, 0, width, height);
    each.pixels.forEach((inside, i) => { if (!inside) pixels.data[4 * i + 3] = 0; });
    context.putImageData(pixels, 0, 0);
    const name = `${number + 1}-${each.class.replace(/[^\p{L}\p{N}_-]+/gu, "_")}.png`;
    files.push([name, new Uint8Array(await (await png(canvas)).arrayBuffer())]);
  }
  return zip(files);
}

function png(canvas) {
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// A ZIP of files as they are: PNGs do not get smaller (APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16).
function zip(files) {
  const parts = [], index = [];
  let place = 0;
  for (const [name, content] of files) {
    const title = new TextEncoder().encode(name);
    const shared = [20, 0x800, 0, 0, 0x21].map(word).concat([crc32(content), content.length, content.length].map(long));
    const head = [long(0x04034b50), ...shared, word(title.length), word(0), title];
    index.push(long(0x02014b50), word(20), ...shared, word(title.length), ...[0, 0, 0, 0].map(word), long(0), long(place), title);
    parts.push(...head, content);
    place += [...head, content].reduce((sum, part) => sum + part.length, 0);
  }
  const length = index.reduce((sum, part) => sum + part.length, 0);
  const end = [long(0x06054b50), word(0), word(0), word(files.length), word(files.length), long(length), long(place), word(0)];
  return new Blob([...parts, ...index, ...end], { type: "application/zip" });
}

const word = (value) => Uint8Array.of(value & 255, (value >> 8) & 255);
const long = (value) => Uint8Array.of(value & 255, (value >>> 8) & 255, (value >>> 16) & 255, value >>> 24);

function crc32(content) {
  let sum = -1;
  for (const byte of content) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return ~sum;
}
