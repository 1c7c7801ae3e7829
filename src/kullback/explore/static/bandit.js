// A policy over a few answers that learns from a reward by PPO or GRPO with a KL penalty. All functions are pure apart from
// the state of the learner.

import { expectation, klProbs, softmax } from "./math.js";

/** A generator of uniform numbers in [0, 1) with a 32-bit seed (mulberry32). */
export function uniformGenerator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** An index drawn from probabilities. */
export function drawIndex(probabilities, uniform) {
  let left = uniform();
  for (let i = 0; i < probabilities.length - 1; i += 1) {
    left -= probabilities[i];
    if (left < 0) return i;
  }
  return probabilities.length - 1;
}

/** "reverse": KL(policy || reference), "forward": KL(reference || policy). */
export const penaltyKl = (direction, policy, reference) => (direction === "reverse" ? klProbs(policy, reference) : klProbs(reference, policy));

/** The gradient of the KL with respect to the logits of the policy. */
export function penaltyGradient(direction, policy, reference) {
  if (direction === "forward") return policy.map((probability, i) => probability - reference[i]);
  const logRatios = policy.map((probability, i) => Math.log(probability / reference[i]));
  const mean = expectation(policy, logRatios);
  return policy.map((probability, i) => probability * (logRatios[i] - mean));
}

const [SAMPLES, GROUP, CLIP, EPOCHS, RATE, GAIN] = [64, 16, 0.2, 4, 0.25, 0.2];
export const LEARNER_SETTINGS = { samples: SAMPLES, group: GROUP, clip: CLIP, epochs: EPOCHS, rate: RATE, gain: GAIN };

/**
 * A learner: { policy, beta, step, update(settings) }. One update draws SAMPLES answers from the policy and ascends EPOCHS
 * times the gradient of the clipped surrogate minus beta times the gradient of the KL, which is computed exactly. PPO
 * subtracts a running mean of the reward from each reward; GRPO standardises the rewards within groups. With a budget,
 * beta is multiplied after each update by exp(GAIN (KL / budget - 1)), where the exponent is limited to [-GAIN, GAIN].
 */
export function makeLearner(reference, reward, seed) {
  const uniform = uniformGenerator(seed);
  const logits = reference.map(Math.log);
  let baseline = expectation(reference, reward);
  const learner = { policy: [...reference], beta: 0.3, step: 0, update };

  function advantages(answers, algorithm) {
    const rewards = answers.map((answer) => reward[answer]);
    if (algorithm === "ppo") {
      const found = rewards.map((value) => value - baseline);
      baseline += 0.2 * (rewards.reduce((a, b) => a + b, 0) / rewards.length - baseline);
      return found;
    }
    const found = [];
    for (let start = 0; start < rewards.length; start += GROUP) {
      const group = rewards.slice(start, start + GROUP);
      const mean = group.reduce((a, b) => a + b, 0) / GROUP;
      const sd = Math.sqrt(group.reduce((sum, value) => sum + (value - mean) ** 2, 0) / GROUP);
      found.push(...group.map((value) => (sd > 0 ? (value - mean) / sd : 0)));
    }
    return found;
  }

  function update({ algorithm, direction, beta, budget }) {
    if (budget === undefined) learner.beta = beta;
    const old = [...learner.policy];
    const answers = Array.from({ length: SAMPLES }, () => drawIndex(old, uniform));
    const values = advantages(answers, algorithm);
    for (let epoch = 0; epoch < EPOCHS; epoch += 1) {
      const policy = softmax(logits);
      const gradient = penaltyGradient(direction, policy, reference).map((slope) => -learner.beta * slope);
      answers.forEach((answer, n) => {
        const ratio = policy[answer] / old[answer];
        if (values[n] > 0 ? ratio > 1 + CLIP : ratio < 1 - CLIP) return;
        const weight = (ratio * values[n]) / SAMPLES;
        policy.forEach((probability, i) => { gradient[i] += weight * ((i === answer ? 1 : 0) - probability); });
      });
      gradient.forEach((slope, i) => { logits[i] += RATE * slope; });
    }
    learner.policy = softmax(logits);
    learner.step += 1;
    if (budget !== undefined) {
      const excess = penaltyKl(direction, learner.policy, reference) / budget - 1;
      learner.beta *= Math.exp(GAIN * Math.min(1, Math.max(-1, excess)));
      learner.beta = Math.min(100, Math.max(1e-4, learner.beta));
    }
  }
  return learner;
}
