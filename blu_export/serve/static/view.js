// The photo with what was found on it, on a canvas that can be zoomed and moved.

import { place } from "./labels.js";
import { color, letters } from "./palette.js";

export const MOST_ZOOM = 16;

// A mask as two pictures of its box: filled, and its outline, wide enough to survive scaling down.
export function paint(each, mask) {
  const [top, left, bottom, right] = each.box, width = right - left, height = bottom - top;
  const reach = Math.max(1, Math.round(Math.max(...each.mask.size) / 600));
  const inside = (x, y) => x >= 0 && x < width && y >= 0 && y < height && mask[y * width + x];
  const edge = new Uint8Array(mask.length);
  for (let i = 0; i < mask.length; i++) {
    const x = i % width, y = (i - x) / width;
    edge[i] = mask[i] && !(inside(x - reach, y) && inside(x + reach, y) && inside(x, y - reach) && inside(x, y + reach));
  }
  return { fill: picture(mask, width, height, each.class_id), edge: picture(edge, width, height, each.class_id) };
}

function picture(mask, width, height, id) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = color(id);
  context.fillRect(0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let i = 0; i < mask.length; i++) pixels.data[4 * i + 3] = 255 * mask[i];
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Draw a photo and its objects. `scale`: canvas pixels a pixel of the photo; `offset`: of the photo's corner, canvas
// pixels; `unit`: canvas pixels a pixel of a usual screen, for lines and letters.
export function render(context, photo, objects, { scale, offset, unit, opacity, masks, boxes, labels, lit }) {
  const { width, height } = size(photo);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  context.setTransform(scale, 0, 0, scale, ...offset);
  if (photo.image?.naturalWidth) context.drawImage(photo.image, 0, 0, width, height);
  const dimmed = (each) => lit !== null && lit !== each;
  for (const each of objects) {
    if (!masks || !each.bitmap) continue;
    const [top, left, bottom, right] = each.box;
    context.globalAlpha = lit === each ? Math.min(1, opacity + 0.25) : dimmed(each) ? opacity * 0.35 : opacity;
    context.drawImage(each.bitmap.fill, left, top, right - left, bottom - top);
    context.globalAlpha = dimmed(each) ? 0.3 : 1;
    context.drawImage(each.bitmap.edge, left, top, right - left, bottom - top);
  }
  context.setTransform(1, 0, 0, 1, 0, 0);
  const room = [context.canvas.width, context.canvas.height], taken = [];
  // The best first: its label has the first choice.
  for (const each of [...objects].reverse()) {
    const [top, left, bottom, right] = each.box.map((side, i) => side * scale + offset[1 - (i % 2)]);
    context.globalAlpha = dimmed(each) ? 0.3 : 1;
    context.strokeStyle = color(each.class_id);
    context.lineWidth = Math.max(1, (lit === each ? 3 : 1.5) * unit);
    if (boxes || lit === each) context.strokeRect(left, top, right - left, bottom - top);
    const seen = left < room[0] && top < room[1] && right > 0 && bottom > 0;
    if (!seen || !(labels || lit === each)) continue;
    const text = `${each.class} ${Math.round(each.score * 100)}`, letterSize = 12 * unit;
    context.font = `600 ${letterSize}px system-ui, sans-serif`;
    const chip = [context.measureText(text).width + 8 * unit, letterSize + 5 * unit];
    const spot = place([top, left, bottom, right], chip, room, taken);
    context.fillStyle = color(each.class_id);
    context.fillRect(spot.x, spot.y, ...chip);
    context.fillStyle = letters(each.class_id);
    context.fillText(text, spot.x + 4 * unit, spot.y + letterSize);
  }
  context.globalAlpha = 1;
}

// Sizes of the photo as the server saw it; without an answer, as the browser does.
export function size(photo) {
  return photo.result?.image ?? { width: photo.image.naturalWidth, height: photo.image.naturalHeight };
}

// What part of the photo a canvas shows.
export class Window {
  reset() {
    this.zoom = 1;
    this.x = this.y = 0; // of the corner that is seen, as shares of the photo
  }

  constructor() {
    this.reset();
  }

  // By a factor, around a point of the canvas given as shares of it.
  by(factor, [atX, atY] = [0.5, 0.5]) {
    const zoom = Math.max(1, Math.min(MOST_ZOOM, this.zoom * factor));
    this.x += atX / this.zoom - atX / zoom;
    this.y += atY / this.zoom - atY / zoom;
    this.zoom = zoom;
    this.keepInside();
  }

  // By shares of the canvas.
  move(x, y) {
    this.x -= x / this.zoom;
    this.y -= y / this.zoom;
    this.keepInside();
  }

  keepInside() {
    const most = 1 - 1 / this.zoom;
    this.x = Math.max(0, Math.min(most, this.x));
    this.y = Math.max(0, Math.min(most, this.y));
  }
}
