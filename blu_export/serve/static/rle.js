// COCO's compressed run-length encoding: runs of 0s and 1s down the columns, as variable-length
// numbers of 5 bits per character, from the third run on as the difference to the run before the last.

export function runs(counts) {
  const found = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0, shift = 0, char;
    do {
      char = counts.charCodeAt(at++) - 48;
      value += (char & 31) * 2 ** shift;
      shift += 5;
    } while (char & 32);
    if (char & 16) value -= 2 ** shift;
    if (found.length > 2) value += found[found.length - 2];
    found.push(value);
  }
  return found;
}

// The mask inside its box (y1, x1, y2, x2): a Uint8Array of rows, 1 where the object is.
export function crop(rle, box) {
  const [top, left, bottom, right] = box, [height] = rle.size;
  const width = right - left, mask = new Uint8Array(width * (bottom - top));
  let at = 0, value = 0;
  for (const run of runs(rle.counts)) {
    if (value) {
      for (let i = at; i < at + run; i++) {
        const y = i % height - top, x = Math.floor(i / height) - left;
        if (y >= 0 && y < bottom - top && x >= 0 && x < width) mask[y * width + x] = 1;
      }
    }
    at += run;
    value ^= 1;
  }
  return mask;
}
