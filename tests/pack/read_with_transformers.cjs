// node read_with_transformers.cjs NODE_MODULES FOLDER '{"images": [...], "texts": [...], "padding": ...}'
// Prints the embeddings that transformers.js gives for a folder of `regcache pack`.
const path = require("path");
const { createRequire } = require("module");

async function main([modules, folder, asked]) {
  const library = createRequire(path.join(modules, "x.js"))("@huggingface/transformers");
  library.env.allowRemoteModels = false;
  library.env.localModelPath = path.dirname(folder) + "/";
  const name = path.basename(folder);
  const { images, texts, padding, dtype } = JSON.parse(asked);
  const result = { images: [], texts: [], ids: [] };
  const processor = await library.AutoProcessor.from_pretrained(name);
  const vision = await library.CLIPVisionModelWithProjection.from_pretrained(name, { dtype: "q8" });
  for (const image of images) {
    const inputs = await processor(await library.RawImage.read(image));
    const { image_embeds } = await vision(inputs);
    result.images.push(Array.from(image_embeds.data));
  }
  if (texts.length) {
    const tokenizer = await library.AutoTokenizer.from_pretrained(name);
    const text = await library.CLIPTextModelWithProjection.from_pretrained(name, { dtype });
    for (const words of texts) {
      const inputs = tokenizer([words], { padding, truncation: true });
      result.ids.push(Array.from(inputs.input_ids.data, Number));
      const { text_embeds } = await text({ input_ids: inputs.input_ids });
      result.texts.push(Array.from(text_embeds.data));
    }
  }
  console.log(JSON.stringify(result));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
