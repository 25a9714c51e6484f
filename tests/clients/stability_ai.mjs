// Call the simulator with the npm package stability-ai: node stability_ai.mjs URL KEY, in a folder that has it.
// The package has no setting for the base URL, so axios, which it sends with, replaces it.
import { createRequire } from "node:module";

const require = createRequire(`${process.cwd()}/`);
const [url, key] = process.argv.slice(2);
require("axios").interceptors.request.use((config) => {
  config.url = config.url.replace("https://api.stability.ai", url);
  return config;
});
const { default: StabilityAI } = require("stability-ai");
const client = new StabilityAI(key);
const { generate } = client.v2beta.stableImage;
const calls = {
  balance: () => client.v1.user.balance(),
  account: () => client.v1.user.account(),
  engines: () => client.v1.engines.list(),
  core: () => generate.core("a lighthouse"),
  ultra: () => generate.ultra("a lighthouse"),
  sd3: () => generate.sd3("a lighthouse"),
};
for (const [name, call] of Object.entries(calls)) {
  try {
    await call();
    console.log(`${name}: success`);
  } catch (error) {
    console.log(`${name}: ${error.message}`);
    process.exitCode = 1;
  }
}
