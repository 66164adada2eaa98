// A bundle in the browser: both towers in onnxruntime-web, on the CPU, in INT8.
import * as ort from "onnxruntime-web";
import { Tokenizer } from "@huggingface/tokenizers";

import { preprocess } from "./pixels.js";

const MEAN = [0.48145466, 0.4578275, 0.40821073];
const STD = [0.26862954, 0.26130258, 0.27577711];

export async function openBundle(folder) {
  const read = async (name) => {
    const answer = await fetch(`${folder}/${name}`);
    if (!answer.ok) throw new Error(`${folder} has no ${name}`);
    return answer;
  };
  const json = async (name) => (await read(name)).json();
  const manifest = await json("manifest.json");
  // what is run is what the manifest lists
  const session = async (name) => {
    const bytes = await (await read(name)).arrayBuffer();
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== manifest.files[name]?.sha256) throw new Error(`${name} was changed`);
    return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  };
  const config = await json("preprocess_cfg.json");
  const { input, output } = manifest.graph;
  const image = await session("model.onnx");
  let text = null;
  if (manifest.files["text/model.onnx"]) {
    const settings = await json("text/text.json");
    const tokenizer = new Tokenizer(await json("text/tokenizer.json"), {});
    text = { settings, tokenizer, tower: await session("text/model.onnx") };
  }

  return {
    manifest,

    // An image file (Blob) -> Float32Array of length 1.
    async embedImage(file) {
      const { data, width, height } = await preprocess(file, config);
      const tensor = arrange(data, width, height, input, config);
      const found = await image.run({ [input.name]: tensor });
      return unit(found[output.name].data);
    },

    // A sentence -> Float32Array of length 1, in the same space.
    async embedText(sentence) {
      if (!text) throw new Error("this bundle has no text tower");
      const { context_length: length, padding, pad_id: pad, eos_id: end } = text.settings;
      const plain = text.settings.html_unescape ? unescape(unescape(sentence)) : sentence;
      let { ids } = text.tokenizer.encode(plain);
      if (ids.length > length) {
        ids = ids.slice(0, length);
        if (end !== null) ids[length - 1] = end;
      }
      while (padding === "context_length" && ids.length < length) ids.push(pad);
      const row = new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
      return unit((await text.tower.run({ input_ids: row })).text_embeds.data);
    },
  };
}

// `&amp;` -> `&`.
function unescape(sentence) {
  const field = document.createElement("textarea");
  field.innerHTML = sentence;
  return field.value;
}

export const cosine = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

function unit(values) {
  const norm = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
  return Float32Array.from(values, (value) => value / Math.max(norm, 1e-12));
}

// RGB bytes [H, W, 3] as the graph takes them.
function arrange(pixels, width, height, input, config) {
  const plane = width * height;
  if (input.dtype === "uint8" && input.shape[3] === 3)
    return new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const bytes = input.dtype === "uint8";
  const planes = bytes ? new Uint8Array(3 * plane) : new Float32Array(3 * plane);
  const [mean, std] = [config.mean ?? MEAN, config.std ?? STD];
  for (let c = 0; c < 3; c++)
    for (let i = 0; i < plane; i++) {
      const value = pixels[3 * i + c];
      planes[c * plane + i] = bytes ? value : (value / 255 - mean[c]) / std[c];
    }
  return new ort.Tensor(input.dtype, planes, [1, 3, height, width]);
}
