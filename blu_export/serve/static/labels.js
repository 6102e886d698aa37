// Where a label goes: above its box, inside it, below it or at its right, wherever it covers the least of those before
// it. The placement of blu_export.draw.

export function place(box, [width, height], [roomWidth, roomHeight], taken) {
  const [top, left, bottom, right] = box;
  const corners = [
    [left, top - height], [left, top], [left, bottom], [right - width, top - height], [right - width, bottom],
    [left, bottom - height], [right, top], [left, (top + bottom - height) / 2],
  ];
  let best = null;
  corners.forEach(([x, y], rank) => {
    const at = [Math.max(0, Math.min(x, roomWidth - width)), Math.max(0, Math.min(y, roomHeight - height))];
    const spot = { x: at[0], y: at[1], width, height };
    const moved = Math.abs(at[0] - x) + Math.abs(at[1] - y);
    const cost = taken.reduce((sum, other) => sum + overlap(spot, other), 0) + 0.02 * height * moved + rank;
    if (best === null || cost < best.cost) best = { cost, spot };
  });
  taken.push(best.spot);
  return best.spot;
}

function overlap(a, b) {
  const width = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
  const height = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
  return Math.max(0, width) * Math.max(0, height);
}
