// Photographs as open_clip with Pillow sees them: a browser's own scaling gives other pixels, and
// with them other embeddings.

const PRECISION = 22; // bits behind the point of Pillow's weights
const kernels = {
  bilinear: { support: 1, at: (x) => Math.max(1 - Math.abs(x), 0) },
  bicubic: {
    support: 2,
    at(x) {
      const [a, t] = [-0.5, Math.abs(x)];
      if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
      return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
    },
  },
};

// An image file (Blob) -> RGB bytes [H, W, 3] of the encoder's size.
export async function preprocess(file, config) {
  if ("crop_pct" in config || "crop_mode" in config || config.resize_mode === "longest")
    throw new Error("this example knows open_clip's modes 'shortest' and 'squash'");
  const [height, width = height] = [config.size ?? 224].flat();
  const kernel = kernels[config.interpolation === "bilinear" ? "bilinear" : "bicubic"];
  let image = await decode(file);
  let [w, h] = [width, height];
  if (config.resize_mode !== "squash") {
    if (width !== height) throw new Error("this example crops squares");
    const long = Math.trunc((width * Math.max(image.width, image.height)) /
                            Math.min(image.width, image.height));
    [w, h] = image.width <= image.height ? [width, long] : [long, height];
  }
  const across = (picture) => columns(picture, w, kernel);
  const down = (picture) => turned(columns(turned(picture), h, kernel));
  // Pillow 13 begins with the rows where they shrink by far more
  const rowsFirst = image.height > h && image.height - h > 2 * (image.width - w);
  image = rowsFirst ? across(down(image)) : down(across(image));
  return cropped(image, halfEven((w - width) / 2), halfEven((h - height) / 2), width, height);
}

// The stored pixels: no turning by EXIF, no colour management. Pillow resizes transparent images,
// palettes and 16 bits in their own way, which a browser does not show.
async function decode(file) {
  const stored = new Blob(withoutExif(new Uint8Array(await file.arrayBuffer())));
  const bitmap = await createImageBitmap(stored, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(3 * width * height);
  for (let i = 0; i < width * height; i++) {
    if (rgba[4 * i + 3] !== 255) throw new Error("this example takes no transparent images");
    for (let c = 0; c < 3; c++) data[3 * i + c] = rgba[4 * i + c];
  }
  return { data, width, height };
}

// A file in pieces, without what says how to turn it: browsers follow that also where they are
// asked not to.
function withoutExif(bytes) {
  const text = (from, to) => String.fromCharCode(...bytes.subarray(from, to));
  const view = new DataView(bytes.buffer);
  if (text(0, 4) === "RIFF" && text(8, 12) === "WEBP") return [bytes]; // nobody turns these
  const kept = [];
  let at;
  if (text(0, 3) === "\xff\xd8\xff") {
    kept.push(bytes.subarray(0, (at = 2)));
    while (at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda) {
      const end = bytes[at + 1] === 0xff ? at + 1 : at + 2 + view.getUint16(at + 2);
      if (bytes[at + 1] !== 0xe1) kept.push(bytes.subarray(at, end));
      at = end;
    }
  } else if (text(0, 8) === "\x89PNG\r\n\x1a\n") {
    const [bits, colour] = bytes.subarray(24, 26);
    if (bits !== 8 || colour === 3)
      throw new Error("this example takes PNG of 8 bits a channel, without a palette");
    kept.push(bytes.subarray(0, (at = 8)));
    while (at + 12 <= bytes.length) {
      const end = at + 12 + view.getUint32(at);
      if (text(at + 4, at + 8) !== "eXIf") kept.push(bytes.subarray(at, end));
      at = end;
    }
  } else throw new Error("this example takes JPEG, PNG and WebP");
  return [...kept, bytes.subarray(at)];
}

// Every row resized to `width`, with antialiasing, in Pillow's fixed-point arithmetic.
function columns({ data, width: before, height }, width, kernel) {
  if (before === width) return { data, width, height };
  const scale = before / width;
  const wide = Math.max(scale, 1);
  const out = new Uint8Array(3 * width * height);
  for (let x = 0; x < width; x++) {
    const center = (x + 0.5) * scale;
    const first = Math.max(Math.trunc(center - kernel.support * wide + 0.5), 0);
    const end = Math.min(Math.trunc(center + kernel.support * wide + 0.5), before);
    const exact = [];
    for (let i = first; i < end; i++) exact.push(kernel.at((i - center + 0.5) / wide));
    const sum = exact.reduce((a, b) => a + b, 0);
    const weights = exact.map((value) => roundAway((value / sum) * 2 ** PRECISION));
    for (let y = 0; y < height; y++)
      for (let c = 0; c < 3; c++) {
        let total = 2 ** (PRECISION - 1);
        weights.forEach((weight, i) => (total += weight * data[3 * (y * before + first + i) + c]));
        out[3 * (y * width + x) + c] = Math.min(Math.max(Math.floor(total / 2 ** PRECISION), 0), 255);
      }
  }
  return { data: out, width, height };
}

function turned({ data, width, height }) {
  const out = new Uint8Array(data.length);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++) out[3 * (x * height + y) + c] = data[3 * (y * width + x) + c];
  return { data: out, width: height, height: width };
}

function cropped({ data, width: stride }, left, top, width, height) {
  const out = new Uint8Array(3 * width * height);
  for (let y = 0; y < height; y++) {
    const begin = 3 * ((top + y) * stride + left);
    out.set(data.subarray(begin, begin + 3 * width), 3 * y * width);
  }
  return { data: out, width, height };
}

const roundAway = (value) => Math.sign(value) * Math.floor(Math.abs(value) + 0.5);
const halfEven = (value) => (value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value));
