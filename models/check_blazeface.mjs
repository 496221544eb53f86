// Runs the original TFJS graph on pictures: node check_blazeface.mjs MODEL.json PICTURES.raw COUNT SIZE OUT_FOLDER
// PICTURES.raw: uint8 [COUNT, SIZE, SIZE, 3] RGB. Writes NAME.raw, float32 [COUNT, rows, columns], of each output.
// `@tensorflow/tfjs` is found from the working directory, where npm installed it.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const tf = createRequire(join(process.cwd(), "here.js"))("@tensorflow/tfjs");
const [modelPath, picturesPath, count, size, folder] = process.argv.slice(2);
const names = ["Identity", "Identity_2", "Identity_1", "Identity_3"];

const stored = JSON.parse(readFileSync(modelPath, "utf8"));
const weights = readFileSync(modelPath.replace(/\.json$/, ".bin"));
const model = await tf.loadGraphModel({
  load: async () => ({
    modelTopology: stored.modelTopology,
    format: stored.format,
    signature: stored.signature,
    weightSpecs: stored.weightsManifest[0].weights,
    weightData: weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.byteLength),
  }),
});
const pictures = readFileSync(picturesPath);
const side = Number(size);
const found = Object.fromEntries(names.map((name) => [name, []]));
for (let index = 0; index < Number(count); index++) {
  const pixels = pictures.subarray(index * side * side * 3, (index + 1) * side * side * 3);
  const input = tf.tensor(Float32Array.from(pixels, (value) => value / 127.5 - 1), [1, side, side, 3]);
  const outputs = model.execute(input, names);
  names.forEach((name, place) => found[name].push(Buffer.from(outputs[place].dataSync().buffer)));
  tf.dispose([input, outputs]);
}
for (const name of names) {
  writeFileSync(join(folder, `${name}.raw`), Buffer.concat(found[name]));
}
console.log(JSON.stringify({ tfjs: tf.version.tfjs, backend: tf.getBackend() }));
