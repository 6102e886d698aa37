// The colors of classes, by id from 1: those of blu_export.draw, to which a test holds them.
const PALETTE = [
  "#61bdff", "#33ff33", "#ff3333", "#ff33ff", "#e0d07b", "#33ffdd", "#ff8cc6", "#2640bf", "#eeff33", "#66bf49",
  "#bf6649", "#3333ff", "#c68cff", "#ff9933", "#ff3377", "#bf26a6", "#69bfbf", "#33ff99", "#4970bf", "#69bf86",
  "#ffcc33", "#cfff8c", "#bf4966", "#b2bf26", "#8c26bf", "#ffb38c", "#96ff61", "#bf2633", "#aa33ff", "#bf9926",
  "#ff8c96", "#ff33aa", "#6188ff", "#e05a2d", "#bf69b8", "#7b61ff", "#d761ff", "#33ddff", "#8cffb3", "#8cffff",
  "#9bbf69", "#ff8cf5", "#bf7326", "#2699bf", "#bf9b69", "#8ca9ff", "#bf267f", "#ff616e", "#fff261", "#ffbd61",
  "#bbff33", "#2de05a", "#26bfa6", "#bf6994", "#8669bf", "#ff9661", "#ff61a3", "#96ff8c", "#698dbf", "#ff61e5",
  "#26bf66", "#7a49bf", "#4026bf", "#d7ff61", "#2659bf", "#bf6969", "#2de0a5", "#ab49bf", "#4be02d", "#7bbfe0",
  "#ff3355", "#3399ff", "#e055b2", "#8cbf26", "#bfb549", "#2d96e0", "#ff7b61", "#d0e07b", "#40bf26", "#e02dd1",
  "#7be0c7", "#88ff33", "#782de0", "#e09b55", "#2de0e0", "#bf8669", "#ffd761", "#8cffcf", "#70bf69", "#ffcf8c",
  "#ffff8c", "#b42de0", "#bf264c", "#a2bf49", "#bf2666", "#ffee33", "#8fe055", "#ff6188", "#bf4949", "#9de07b",
  "#96e02d", "#bf9849", "#bf5926", "#3366ff", "#7b84e0", "#a655e0", "#5561e0", "#33ff66", "#b326bf", "#d1e02d",
  "#8cecff", "#ff61ff", "#ff33cc", "#ff7733", "#bf4984", "#e07b95", "#e03c2d", "#e0782d", "#b2e055", "#bf7a49",
];

export const color = (id) => PALETTE[(id - 1) % PALETTE.length];

// Letters on a color: dark on bright ones, as on the overlays of blu infer.
export function letters(id) {
  const [red, green, blue] = [1, 3, 5].map((at) => (parseInt(color(id).slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.3 ? "#121418" : "#fff";
}
