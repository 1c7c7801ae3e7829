// The mathematics of the explorer, checked against Python's: KL of densities and of tables, fits, the optimum, a gridworld.
// Pure functions of plain numbers and arrays: no document, no state.

/** phi(d) = e^d - 1 - d without its cancellation near 0. */
export function phi(d) {
  if (Math.abs(d) > 0.03) return Math.expm1(d) - d;
  let term = (d * d) / 2;
  let sum = term;
  for (let k = 3; k < 9; k += 1) sum += term *= d / k;
  return sum;
}

const logSum = (values) => {
  const top = Math.max(...values);
  return top === -Infinity ? top : top + Math.log(values.reduce((sum, value) => sum + Math.exp(value - top), 0));
};

// ---- densities on the line: a mixture [{ weight, mean, width }], weights summing to one ----

const HALF_LOG_TAU = 0.5 * Math.log(2 * Math.PI);

/** The log-density of a mixture of normals at x. */
export function logDensity(parts, x) {
  let top = -Infinity;
  const logs = parts.map(({ weight, mean, width }) => {
    const z = (x - mean) / width;
    const value = Math.log(weight) - Math.log(width) - HALF_LOG_TAU - 0.5 * z * z;
    if (value > top) top = value;
    return value;
  });
  if (logs.length === 1) return logs[0];
  let sum = 0;
  for (const value of logs) sum += Math.exp(value - top);
  return top + Math.log(sum);
}

const REACH = 9;

/** KL(p || q) of two mixtures of normals, in nats: the sum of p phi(log q - log p) by the trapezoid rule, both masses being 1. */
export function klOfDensities(p, q, fine = 16) {
  const low = Math.min(...p.map((part) => part.mean - REACH * part.width));
  const high = Math.max(...p.map((part) => part.mean + REACH * part.width));
  const narrow = Math.min(...p.map((part) => part.width), ...q.map((part) => part.width));
  const count = Math.min(40_000, Math.max(200, Math.ceil(((high - low) * fine) / narrow)));
  const step = (high - low) / count;
  let [kl, massP, massQ] = [0, 0, 0];
  for (let i = 0; i <= count; i += 1) {
    const x = low + i * step;
    const [logP, logQ] = [logDensity(p, x), logDensity(q, x)];
    const [density, other] = [Math.exp(logP), Math.exp(logQ)];
    const d = logQ - logP;
    kl += d > 30 ? other - density - density * d : density === 0 ? other : density * phi(d);
    massP += density;
    massQ += other;
  }
  // q may have mass where p has none to speak of: outside, p phi(log q / p) is q alone.
  return Math.max(0, step * kl + (1 - step * massQ) - (1 - step * massP));
}

const normal = (mean, width) => [{ weight: 1, mean, width }];

/** KL of the direction: "forward" is KL(P || Q), "reverse" KL(Q || P), Q the normal of this mean and width. */
export const klTo = (direction, target, mean, width, fine) =>
  direction === "forward" ? klOfDensities(target, normal(mean, width), fine) : klOfDensities(normal(mean, width), target, fine);

/** From a start downhill along the natural gradient, each step a bounded number of nats: [{ mean, width, kl }]. */
export function descend(direction, target, start, most = 120) {
  let [mean, width] = [start.mean, start.width];
  let kl = klTo(direction, target, mean, width);
  const path = [{ mean, width, kl }];
  for (let step = 0; step < most; step += 1) {
    const h = 1e-3;
    const along = (a, b) => klTo(direction, target, mean + a * h * width, width * Math.exp(b * h));
    const slope = [(along(1, 0) - along(-1, 0)) / (2 * h), (along(0, 1) - along(0, -1)) / (2 * h)];
    // The Fisher metric of a normal, in units of its width: 1 and 2.
    let move = [-slope[0], -slope[1] / 2];
    const length = Math.hypot(move[0], Math.SQRT2 * move[1]);
    if (length < 1e-7) break;
    if (length > 0.5) move = move.map((one) => (one * 0.5) / length);
    let found = false;
    for (let share = 1; share > 1e-4; share /= 2) {
      const [there, wide] = [mean + share * move[0] * width, width * Math.exp(share * move[1])];
      const value = klTo(direction, target, there, wide);
      if (value < kl) {
        found = true;
        [mean, width, kl] = [there, wide, value];
        break;
      }
    }
    if (!found) break;
    path.push({ mean, width, kl });
  }
  return path;
}

/** KL over a grid of means and log-widths, row by row of widths. */
export function mapOf(direction, target, means, widths) {
  return widths.map((width) => means.map((mean) => klTo(direction, target, mean, width, 2)));
}

/** Every minimum of the map, found by descents from its lowest cells: [{ mean, width, kl }], the lowest first. */
export function minimaOf(direction, target, means, widths, map) {
  const found = [];
  map.forEach((row, i) => row.forEach((value, j) => {
    const around = [-1, 0, 1].flatMap((a) => [-1, 0, 1].map((b) => map[i + a]?.[j + b] ?? Infinity));
    if (value > Math.min(...around)) return;
    const end = descend(direction, target, { mean: means[j], width: widths[i] }, 400).at(-1);
    const same = found.some((one) => Math.abs(one.mean - end.mean) < 0.05 * end.width && Math.abs(Math.log(one.width / end.width)) < 0.05);
    if (!same) found.push(end);
  }));
  return found.sort((one, other) => one.kl - other.kl);
}

// ---- tables of probabilities ----

export const softmax = (logits) => {
  const total = logSum(logits);
  return logits.map((logit) => Math.exp(logit - total));
};

/** What each event adds to KL(p || q): p phi(log q/p), q where p is 0, infinite where q alone is 0. */
export const termsOf = (p, q) => p.map((one, i) => {
  if (one === 0) return q[i];
  if (q[i] === 0) return Infinity;
  const d = Math.log(q[i]) - Math.log(one);
  return d > 30 ? q[i] - one - one * d : one * phi(d);
});

export const klOf = (p, q) => termsOf(p, q).reduce((sum, term) => sum + term, 0);

/** Jensen-Shannon: the mean KL to the middle. */
export function jensenShannon(p, q) {
  const middle = p.map((one, i) => (one + q[i]) / 2);
  return (klOf(p, middle) + klOf(q, middle)) / 2;
}

/** q at a temperature, and cut to the likeliest events that hold at least the share `top` of its mass. */
export function sampled(q, temperature, top) {
  const logs = q.map((one) => Math.log(one) / temperature);
  const heated = softmax(logs);
  const order = heated.map((_, i) => i).sort((a, b) => heated[b] - heated[a]);
  let [mass, kept] = [0, new Set()];
  for (const i of order) {
    if (mass >= top) break;
    mass += heated[i];
    kept.add(i);
  }
  return top >= 1 ? heated : heated.map((one, i) => (kept.has(i) ? one / mass : 0));
}

// ---- the optimum of reward less beta KL(policy || reference) ----

/** The policy that is best at this price: reference e^(reward/beta), normalised; with its KL and reward. */
export function tilt(reference, reward, beta) {
  const logs = reference.map((one, i) => Math.log(one) + (beta === Infinity ? 0 : reward[i] / beta));
  const policy = softmax(logs);
  return { policy, beta, kl: klOf(policy, reference), reward: policy.reduce((sum, one, i) => sum + one * reward[i], 0) };
}

/** The price at which a growing function of 1/beta meets the budget, by halving. */
function priceFor(budget, klAt) {
  let [low, high] = [-30, 30]; // log beta
  if (budget <= 0) return Infinity;
  if (klAt(Math.exp(low)) <= budget) return Math.exp(low);
  for (let i = 0; i < 100; i += 1) {
    const middle = (low + high) / 2;
    if (klAt(Math.exp(middle)) > budget) low = middle;
    else high = middle;
  }
  return Math.exp((low + high) / 2);
}

/** The best policy within a budget of nats. */
export const tiltToBudget = (reference, reward, budget) =>
  tilt(reference, reward, priceFor(budget, (beta) => tilt(reference, reward, beta).kl));

/** The policy of drawing n from the reference and keeping one of the highest reward. */
export function bestOfN(reference, reward, n) {
  return reference.map((one, i) => {
    let [below, level] = [0, 0];
    reward.forEach((other, j) => {
      if (other < reward[i]) below += reference[j];
      else if (other === reward[i]) level += reference[j];
    });
    return ((Math.min(1, below + level) ** n - below ** n) * one) / level;
  });
}

// ---- a gridworld of finite length: { side, start, horizon, reward: [by cell], stops: [cells] } ----

export const MOVES = [[-1, 0], [0, 1], [1, 0], [0, -1]]; // up, right, down, left

/** The cell that a move leads to; walls hold. */
export function moved(side, cell, move) {
  const [row, column] = [Math.floor(cell / side) + MOVES[move][0], (cell % side) + MOVES[move][1]];
  return row < 0 || column < 0 || row >= side || column >= side ? cell : row * side + column;
}

/** The best policy at a price against the uniform reference: soft values backwards, then KL, reward and visits forwards. */
export function softGrid(world, beta, watched = world.reward) {
  const { side, start, horizon, reward, stops } = world;
  const cells = side * side;
  let value = new Array(cells).fill(0);
  const policies = [];
  for (let t = horizon - 1; t >= 0; t -= 1) {
    const next = value;
    const policy = [];
    value = next.map((_, cell) => {
      if (stops.includes(cell)) {
        policy.push([0.25, 0.25, 0.25, 0.25]);
        return 0;
      }
      const worth = MOVES.map((_move, a) => {
        const there = moved(side, cell, a);
        return reward[there] + next[there];
      });
      const logs = worth.map((one) => one / beta + Math.log(0.25));
      policy.push(beta === Infinity ? [0.25, 0.25, 0.25, 0.25] : softmax(logs));
      return beta === Infinity ? worth.reduce((sum, one) => sum + one / 4, 0) : beta * logSum(logs);
    });
    policies.unshift(policy);
  }
  let at = new Array(cells).fill(0);
  at[start] = 1;
  const visits = [...at];
  let [kl, gained, seen] = [0, 0, 0];
  const uniform = [0.25, 0.25, 0.25, 0.25];
  for (const policy of policies) {
    const after = new Array(cells).fill(0);
    at.forEach((mass, cell) => {
      if (mass === 0) return;
      if (stops.includes(cell)) {
        after[cell] += mass;
        return;
      }
      kl += mass * klOf(policy[cell], uniform);
      policy[cell].forEach((share, a) => {
        const there = moved(side, cell, a);
        after[there] += mass * share;
        gained += mass * share * reward[there];
        seen += mass * share * watched[there];
      });
    });
    at = after;
    at.forEach((mass, cell) => { if (!stops.includes(cell)) visits[cell] += mass; });
    stops.forEach((cell) => { visits[cell] = at[cell]; });
  }
  return { policies, visits, kl, reward: gained, watched: seen, beta };
}

/** The best policy of the gridworld within a budget of nats an episode. */
export function gridToBudget(world, budget, watched) {
  return softGrid(world, priceFor(budget, (beta) => softGrid(world, beta).kl), watched);
}
