// The mathematics of the explorer: KL of densities and of probabilities, fits, optimal policies, a gridworld. All functions
// are pure. tests/explore/test_math.py compares them with the Python package.

/** phi(d) = e^d - 1 - d, without cancellation near 0. */
export function phi(d) {
  if (Math.abs(d) > 0.03) return Math.expm1(d) - d;
  let term = (d * d) / 2;
  let sum = term;
  for (let k = 3; k < 9; k += 1) sum += term *= d / k;
  return sum;
}

/** log sum_i e^(values_i). */
const logSumExp = (values) => {
  const top = Math.max(...values);
  return top === -Infinity ? top : top + Math.log(values.reduce((sum, value) => sum + Math.exp(value - top), 0));
};

// ---- densities on the real line: a mixture [{ weight, mean, sd }], whose weights sum to 1 ----

const HALF_LOG_TAU = 0.5 * Math.log(2 * Math.PI);

/** The function that returns the log-density of a mixture of normal distributions at x. */
export function logDensityOf(parts) {
  const terms = parts.map(({ weight, mean, sd }) => [mean, 1 / sd, Math.log(weight) - Math.log(sd) - HALF_LOG_TAU]);
  const logs = new Float64Array(parts.length);
  return (x) => {
    let top = -Infinity;
    for (let i = 0; i < logs.length; i += 1) {
      const z = (x - terms[i][0]) * terms[i][1];
      logs[i] = terms[i][2] - 0.5 * z * z;
      if (logs[i] > top) top = logs[i];
    }
    if (logs.length === 1) return top;
    let sum = 0;
    for (const value of logs) sum += Math.exp(value - top);
    return top + Math.log(sum);
  };
}

/** p phi(log q - log p), from the logarithms of p and q; the limit at p = 0 is q. */
export function klIntegrand(logP, logQ) {
  const [p, q, d] = [Math.exp(logP), Math.exp(logQ), logQ - logP];
  return d > 30 ? q - p - p * d : p === 0 ? q : p * phi(d);
}

const TAIL = 9; // integration limits, in standard deviations from the mean of each component

/**
 * KL(p || q) of two normal mixtures in nats: the integral of p phi(log q - log p) by the trapezoid rule, corrected for the
 * mass of p and q outside of the grid.
 */
export function klOfDensities(p, q, pointsPerSd = 16) {
  const low = Math.min(...p.map((part) => part.mean - TAIL * part.sd));
  const high = Math.max(...p.map((part) => part.mean + TAIL * part.sd));
  const smallestSd = Math.min(...p.map((part) => part.sd), ...q.map((part) => part.sd));
  const count = Math.min(40_000, Math.max(200, Math.ceil(((high - low) * pointsPerSd) / smallestSd)));
  const step = (high - low) / count;
  const [logDensityOfP, logDensityOfQ] = [logDensityOf(p), logDensityOf(q)];
  let [kl, massP, massQ] = [0, 0, 0];
  for (let i = 0; i <= count; i += 1) {
    const x = low + i * step;
    const [logP, logQ] = [logDensityOfP(x), logDensityOfQ(x)];
    kl += klIntegrand(logP, logQ);
    massP += Math.exp(logP);
    massQ += Math.exp(logQ);
  }
  // The integrand equals q - p + p log(p/q). Outside of the grid the last term is negligible, so the masses suffice.
  return Math.max(0, step * kl + (1 - step * massQ) - (1 - step * massP));
}

const normal = (mean, sd) => [{ weight: 1, mean, sd }];

/** "forward": KL(P || Q), "reverse": KL(Q || P), where P is the mixture `target` and Q is the normal with this mean and sd. */
export const klTo = (direction, target, mean, sd, pointsPerSd) =>
  direction === "forward" ? klOfDensities(target, normal(mean, sd), pointsPerSd) : klOfDensities(normal(mean, sd), target, pointsPerSd);

/** The normal that minimises KL(P || Q): it has the mean and the variance of P. */
export function forwardFit(target) {
  const mean = target.reduce((sum, part) => sum + part.weight * part.mean, 0);
  const variance = target.reduce((sum, part) => sum + part.weight * (part.sd ** 2 + (part.mean - mean) ** 2), 0);
  return { mean, sd: Math.sqrt(variance) };
}

// Nodes and weights of Gauss-Legendre quadrature with 6 points on [-1, 1].
const LEGENDRE = [[0.932469514203152, 0.17132449237917], [0.661209386466265, 0.360761573048139], [0.238619186083197, 0.467913934572691]]
  .flatMap(([node, weight]) => [[-node, weight], [node, weight]]);

/** The points at which two components of a mixture are equally likely, with the widths of the transitions between them. */
function crossings(parts) {
  const found = [];
  parts.forEach((one, i) => parts.slice(i + 1).forEach((other) => {
    // log(one / other) is a x^2 + b x + c.
    const [u, v] = [0.5 / one.sd ** 2, 0.5 / other.sd ** 2];
    const [a, b] = [v - u, 2 * (u * one.mean - v * other.mean)];
    const c = v * other.mean ** 2 - u * one.mean ** 2 + Math.log((one.weight * other.sd) / (other.weight * one.sd));
    const root = Math.sqrt(b * b - 4 * a * c);
    const half = -0.5 * (b + (b < 0 ? -root : root));
    for (const x of [c / half, half / a]) if (Number.isFinite(x)) found.push([x, 1 / Math.abs(2 * a * x + b)]);
  }));
  return found.filter(([, width]) => Number.isFinite(width));
}

/** Nodes z and weights for the mean of f(mean + sd z), where z is standard normal and f changes fast at `points`. */
function normalNodes(mean, sd, points) {
  const breaks = Array.from({ length: 21 }, (_, i) => -7 + 0.7 * i);
  for (const [x, width] of points) {
    for (const multiple of [-30, -10, -3, 0, 3, 10, 30]) {
      const z = (x + multiple * width - mean) / sd;
      if (Math.abs(z) < 7) breaks.push(z);
    }
  }
  breaks.sort((x, y) => x - y);
  return breaks.slice(1).flatMap((high, i) => {
    const [center, half] = [(high + breaks[i]) / 2, (high - breaks[i]) / 2];
    return LEGENDRE.map(([node, weight]) => {
      const z = center + half * node;
      return [z, half * weight * Math.exp(-0.5 * z * z - HALF_LOG_TAU)];
    });
  });
}

/**
 * The gradient and the Hessian of KL(Q || P) in the coordinates (mean, log sd), and KL(Q || P) without a constant:
 * [value, gradient for the mean, gradient for log sd, Hessian mean-mean, mean-log sd, log sd-log sd].
 */
function reverseDerivatives(target, mean, sd) {
  let [value, g1, g1z, g2, g2z, g2zz] = [0, 0, 0, 0, 0, 0];
  const terms = target.map((part) => [part.mean, 1 / part.sd ** 2, Math.log(part.weight / part.sd)]);
  const logs = new Float64Array(target.length);
  for (const [z, weight] of normalNodes(mean, sd, crossings(target))) {
    const x = mean + sd * z;
    let top = -Infinity;
    for (let i = 0; i < logs.length; i += 1) {
      logs[i] = terms[i][2] - 0.5 * terms[i][1] * (x - terms[i][0]) ** 2;
      if (logs[i] > top) top = logs[i];
    }
    let [sum, score, square, precisions] = [0, 0, 0, 0];
    for (let i = 0; i < logs.length; i += 1) {
      const share = Math.exp(logs[i] - top);
      const slope = terms[i][1] * (x - terms[i][0]);
      sum += share;
      score += share * slope;
      square += share * slope * slope;
      precisions += share * terms[i][1];
    }
    const first = score / sum; // the derivatives of -log p(x)
    const second = precisions / sum - square / sum + first * first;
    value -= weight * (top + Math.log(sum));
    g1 += weight * first;
    g1z += weight * first * z;
    g2 += weight * second;
    g2z += weight * second * z;
    g2zz += weight * second * z * z;
  }
  return [value - Math.log(sd), g1, sd * g1z - 1, g2, sd * g2z, sd * sd * g2zz + sd * g1z];
}

/** The same values for KL(P || Q), which have closed forms. */
function forwardDerivatives(target, mean, sd) {
  const fit = forwardFit(target);
  const [offset, precision] = [mean - fit.mean, 1 / sd ** 2];
  const square = precision * (fit.sd ** 2 + offset ** 2);
  return [Math.log(sd) + square / 2, precision * offset, 1 - square, precision, -2 * precision * offset, 2 * square];
}

/**
 * A path [{ mean, sd }] from `start` to the minimum that the natural gradient of KL leads to. Steps have a length of at
 * most 0.15 in the metric of Fisher, and Newton steps are taken near the minimum. The last point has `kl`.
 */
export function descend(direction, target, start, maxSteps = 400) {
  const derivatives = direction === "forward" ? forwardDerivatives : reverseDerivatives;
  let [mean, sd] = [start.mean, start.sd];
  let found = derivatives(target, mean, sd);
  const path = [{ mean, sd }];
  for (let step = 0; step < maxSteps; step += 1) {
    const [value, a, b, aa, ab, bb] = found;
    // The Fisher information of a normal distribution is diag(1 / sd^2, 2) in the coordinates mean and log sd.
    let move = [-a * sd * sd, -b / 2];
    const determinant = aa * bb - ab * ab;
    if (aa > 0 && determinant > 0) {
      const newton = [(ab * b - bb * a) / determinant, (ab * a - aa * b) / determinant];
      if (Math.hypot(newton[0] / sd, Math.SQRT2 * newton[1]) < 0.15) move = newton;
    }
    const length = Math.hypot(move[0] / sd, Math.SQRT2 * move[1]);
    if (length < 1e-9) break;
    const limit = Math.min(1, 0.15 / length);
    let next = null;
    for (let size = limit; size > 1e-6 * limit && !next; size /= 2) {
      const [newMean, newSd] = [mean + size * move[0], sd * Math.exp(size * move[1])];
      const values = derivatives(target, newMean, newSd);
      if (values[0] < value) next = [newMean, newSd, values];
    }
    if (!next) break;
    [mean, sd, found] = next;
    path.push({ mean, sd });
  }
  path.at(-1).kl = klTo(direction, target, mean, sd);
  return path;
}

/** KL on a grid of means and standard deviations, with a row for each standard deviation. The relative error is about 1%. */
export function klMap(direction, target, means, sds) {
  if (direction === "forward") {
    const fit = forwardFit(target); // KL(P || Q) is its minimum plus a function of the mean and the variance of P
    const best = klTo("forward", target, fit.mean, fit.sd, 4);
    return sds.map((sd) => means.map((mean) =>
      best + Math.log(sd / fit.sd) + (((fit.sd ** 2 + (mean - fit.mean) ** 2) / sd ** 2) - 1) / 2));
  }
  // log p is tabulated, and the mean over Q is a trapezoid rule, with more nodes for a wide Q.
  const [low, high] = [means[0] - 6 * sds.at(-1) - 1, means.at(-1) + 6 * sds.at(-1)];
  const step = Math.min(0.1, Math.min(...target.map((part) => part.sd)) / 20);
  const logDensity = logDensityOf(target);
  const table = Float64Array.from({ length: Math.ceil((high - low) / step) + 3 }, (_, i) => logDensity(low + i * step));
  return sds.map((sd) => {
    const half = Math.ceil(6 / Math.min(0.25, 0.6 / sd));
    const weights = Float64Array.from({ length: 2 * half + 1 }, (_, i) => (6 / half) * Math.exp(-18 * (i / half - 1) ** 2 - HALF_LOG_TAU));
    return means.map((mean) => {
      let value = -Math.log(sd) - HALF_LOG_TAU - 0.5;
      let position = (mean - 6 * sd - low) / step;
      const change = (6 * sd) / (half * step);
      for (let k = 0; k <= 2 * half; k += 1, position += change) {
        const index = Math.floor(position);
        value -= weights[k] * (table[index] + (position - index) * (table[index + 1] - table[index]));
      }
      return Math.max(0, value);
    });
  });
}

/**
 * The local minima in increasing order of KL: [{ mean, sd, kl }]. Descents start at the local minima of the map, and at the
 * mean and the variance of every set of components, because the map is too coarse for shallow minima.
 */
export function localMinima(direction, target, means, sds, map) {
  const starts = [];
  for (let set = 1; set < 2 ** target.length; set += 1) {
    const chosen = target.filter((_, i) => (set >> i) & 1);
    const mass = chosen.reduce((sum, { weight }) => sum + weight, 0);
    starts.push(forwardFit(chosen.map((part) => ({ ...part, weight: part.weight / mass }))));
  }
  map.forEach((row, i) => row.forEach((value, j) => {
    for (let a = -1; a <= 1; a += 1) for (let b = -1; b <= 1; b += 1) if ((map[i + a]?.[j + b] ?? Infinity) < value) return;
    starts.push({ mean: means[j], sd: sds[i] });
  }));
  const found = [];
  for (const start of starts) {
    const end = descend(direction, target, start).at(-1);
    const [, , , aa, ab, bb] = (direction === "forward" ? forwardDerivatives : reverseDerivatives)(target, end.mean, end.sd);
    if (!(aa > 0 && aa * bb > ab * ab)) continue; // a saddle point, which a descent from a symmetric start reaches
    const same = found.some((other) => Math.abs(other.mean - end.mean) < 0.05 * end.sd && Math.abs(Math.log(other.sd / end.sd)) < 0.05);
    if (!same) found.push(end);
  }
  // Minima of the same KL up to rounding are listed from left to right.
  return found.sort((a, b) => (Math.abs(a.kl - b.kl) < 1e-7 * (1 + a.kl) ? a.mean - b.mean : a.kl - b.kl));
}

// ---- discrete probabilities ----

export const softmax = (logits) => {
  const logNormaliser = logSumExp(logits);
  return logits.map((logit) => Math.exp(logit - logNormaliser));
};

/** The terms p_i phi(log q_i/p_i) of KL(p || q): q_i where p_i = 0, infinite where q_i = 0 and p_i > 0. */
export const klTerms = (p, q) => p.map((pi, i) => {
  if (pi === 0) return q[i];
  if (q[i] === 0) return Infinity;
  const d = Math.log(q[i]) - Math.log(pi);
  return d > 30 ? q[i] - pi - pi * d : pi * phi(d);
});

/** KL(p || q) in nats. */
export const klProbs = (p, q) => klTerms(p, q).reduce((sum, term) => sum + term, 0);

/** The terms p_i log(p_i/q_i) of KL(p || q), which may be negative; 0 where p_i = 0, infinite where q_i = 0 and p_i > 0. */
export const logRatioTerms = (p, q) => p.map((pi, i) => (pi === 0 ? 0 : q[i] === 0 ? Infinity : pi * (Math.log(pi) - Math.log(q[i]))));

/** The estimators of KL(p || q) from one sample of p with d = log q - log p: k1 = -d, k2 = d^2 / 2, k3 = phi(d). */
export const KL_ESTIMATORS = { k1: (d) => -d, k2: (d) => (d * d) / 2, k3: phi };

/** The mean and the standard deviation over p of an estimator of KL(p || q) from one sample. */
export function estimatorMoments(name, p, q) {
  const values = p.map((pi, i) => (pi === 0 ? 0 : KL_ESTIMATORS[name](Math.log(q[i]) - Math.log(pi))));
  const mean = expectation(p, values);
  return { mean, sd: Math.sqrt(expectation(p, values.map((value) => (value - mean) ** 2))) };
}

/**
 * The KL of sequences of `length` tokens under two Markov chains with transition rows `p` and `q`, after the token `start`:
 * the sum over positions of the mean over p of KL(p(. | previous token) || q(. | previous token)).
 */
export function sequenceKl(p, q, start, length) {
  const rowKl = p.map((row, i) => klProbs(row, q[i]));
  let state = p.map((_, i) => (i === start ? 1 : 0));
  let sum = 0;
  for (let t = 0; t < length; t += 1) {
    sum += state.reduce((total, mass, i) => (mass === 0 ? total : total + mass * rowKl[i]), 0);
    state = state.map((_, j) => p.reduce((total, row, i) => total + state[i] * row[j], 0));
  }
  return sum;
}

/** The Jensen-Shannon divergence (KL(p || m) + KL(q || m)) / 2 in nats, with m = (p + q) / 2. */
export function jensenShannon(p, q) {
  const mean = p.map((pi, i) => (pi + q[i]) / 2);
  return (klProbs(p, mean) + klProbs(q, mean)) / 2;
}

/** q^(1/temperature), normalised and then restricted to its most likely events with total probability at least `topP`. */
export function samplingDistribution(q, temperature, topP) {
  const tempered = softmax(q.map((qi) => Math.log(qi) / temperature));
  const order = tempered.map((_, i) => i).sort((a, b) => tempered[b] - tempered[a]);
  let [mass, kept] = [0, new Set()];
  for (const i of order) {
    if (mass >= topP) break;
    mass += tempered[i];
    kept.add(i);
  }
  return topP >= 1 ? tempered : tempered.map((probability, i) => (kept.has(i) ? probability / mass : 0));
}

// ---- policies that maximise reward - beta KL(policy || reference) ----

/** sum_i probabilities_i values_i. */
export const expectation = (probabilities, values) => probabilities.reduce((sum, probability, i) => sum + probability * values[i], 0);

/** The optimal policy at a penalty weight, reference e^(reward/beta) / Z, with its KL and its expected reward. */
export function tilt(reference, reward, beta) {
  const logits = reference.map((probability, i) => Math.log(probability) + (beta === Infinity ? 0 : reward[i] / beta));
  const policy = softmax(logits);
  return { policy, beta, kl: klProbs(policy, reference), reward: expectation(policy, reward) };
}

/**
 * The beta at which klAt(beta), a decreasing function of beta, equals the budget: regula falsi for log KL as a function of
 * log beta, with the Illinois modification, and a bisection whenever the interval shrinks too little.
 */
function betaFor(budget, klAt) {
  if (budget <= 0) return Infinity;
  const excess = (logBeta) => Math.log(klAt(Math.exp(logBeta)) / budget);
  let [low, high] = [-30, 30];
  let [atLow, atHigh] = [excess(low), excess(high)];
  if (atLow <= 0) return Math.exp(low);
  for (let i = 0, side = 0; i < 100 && high - low > 1e-14 * (1 + Math.abs(low)); i += 1) {
    const chord = (low * atHigh - high * atLow) / (atHigh - atLow);
    const middle = i % 3 < 2 && chord > low && chord < high ? chord : (low + high) / 2;
    const found = excess(middle);
    if (Math.abs(found) < 1e-15) return Math.exp(middle);
    if (found > 0) {
      [low, atLow] = [middle, found];
      if (side === 1) atHigh /= 2;
      side = 1;
    } else {
      [high, atHigh] = [middle, found];
      if (side === -1) atLow /= 2;
      side = -1;
    }
  }
  return Math.exp((low + high) / 2);
}

/** The policy with the largest expected reward under a KL budget in nats. */
export const tiltToBudget = (reference, reward, budget) =>
  tilt(reference, reward, betaFor(budget, (beta) => tilt(reference, reward, beta).kl));

/** The policy that maximises reward - beta KL(reference || policy): beta reference / (level - reward), where the level makes the sum 1. */
export function forwardTilt(reference, reward, beta) {
  if (beta === Infinity) return { policy: [...reference], beta, kl: 0, reward: expectation(reference, reward) };
  const top = Math.max(...reward);
  let [low, high] = [-80, Math.log(2 * beta + top - Math.min(...reward) + 1)]; // log(level - top)
  const policyAt = (excess) => reference.map((probability, i) => (beta * probability) / (Math.exp(excess) + top - reward[i]));
  for (let i = 0; i < 80; i += 1) {
    const middle = (low + high) / 2;
    if (policyAt(middle).reduce((a, b) => a + b, 0) > 1) low = middle;
    else high = middle;
  }
  const policy = policyAt(high);
  const mass = policy.reduce((a, b) => a + b, 0);
  const normalised = policy.map((probability) => probability / mass);
  return { policy: normalised, beta, kl: klProbs(reference, normalised), reward: expectation(normalised, reward) };
}

/** The policy with the largest expected reward under a budget for KL(reference || policy) in nats. */
export const forwardTiltToBudget = (reference, reward, budget) =>
  forwardTilt(reference, reward, betaFor(budget, (beta) => forwardTilt(reference, reward, beta).kl));

/** The distribution of the sample with the highest reward among n samples from the reference; ties are broken at random. */
export function bestOfN(reference, reward, n) {
  return reference.map((probability, i) => {
    let [below, equal] = [0, 0]; // probabilities of a smaller and of the same reward
    reward.forEach((other, j) => {
      if (other < reward[i]) below += reference[j];
      else if (other === reward[i]) equal += reference[j];
    });
    return ((Math.min(1, below + equal) ** n - below ** n) * probability) / equal;
  });
}

// ---- a gridworld with a finite horizon: { side, start, horizon, reward: [by cell], terminal: [cells] } ----

export const MOVES = [[-1, 0], [0, 1], [1, 0], [0, -1]]; // up, right, down, left

/** The cell after a move; a move into a wall leaves the cell unchanged. */
export function nextCell(side, cell, move) {
  const [row, column] = [Math.floor(cell / side) + MOVES[move][0], (cell % side) + MOVES[move][1]];
  return row < 0 || column < 0 || row >= side || column >= side ? cell : row * side + column;
}

/**
 * The policy that maximises E[sum of rewards - beta KL(policy || uniform)] by soft value iteration, with its KL per
 * episode, its expected reward, its expected `trueReward` and its expected visits of each cell.
 */
export function softGrid(world, beta, trueReward = world.reward) {
  const { side, start, horizon, reward, terminal } = world;
  const cells = side * side;
  const ends = Array.from({ length: cells }, (_, cell) => terminal.includes(cell));
  const next = Array.from({ length: 4 * cells }, (_, i) => nextCell(side, i >> 2, i & 3));
  let value = new Float64Array(cells);
  const policies = []; // for each step, the probabilities of the four moves in each cell
  for (let t = horizon - 1; t >= 0; t -= 1) {
    const [policy, now] = [new Float64Array(4 * cells).fill(0.25), new Float64Array(cells)];
    for (let cell = 0; cell < cells; cell += 1) {
      if (ends[cell]) continue;
      let [top, mean] = [-Infinity, 0];
      for (let i = 4 * cell; i < 4 * cell + 4; i += 1) {
        policy[i] = reward[next[i]] + value[next[i]]; // the value of the move, until the next loop
        mean += policy[i] / 4;
        if (policy[i] > top) top = policy[i];
      }
      let sum = 0;
      for (let i = 4 * cell; i < 4 * cell + 4; i += 1) sum += policy[i] = beta === Infinity ? 1 : Math.exp((policy[i] - top) / beta);
      for (let i = 4 * cell; i < 4 * cell + 4; i += 1) policy[i] /= sum;
      now[cell] = beta === Infinity ? mean : top + beta * Math.log(sum / 4);
    }
    value = now;
    policies.unshift(policy);
  }
  let occupancy = new Float64Array(cells);
  occupancy[start] = 1;
  const visits = [...occupancy];
  let [kl, expectedReward, expectedTrueReward] = [0, 0, 0];
  for (const policy of policies) {
    const later = new Float64Array(cells);
    for (let cell = 0; cell < cells; cell += 1) {
      const mass = occupancy[cell];
      if (ends[cell]) later[cell] += mass;
      if (mass === 0 || ends[cell]) continue;
      for (let i = 4 * cell; i < 4 * cell + 4; i += 1) {
        const probability = policy[i];
        if (probability > 0) kl += mass * probability * phi(Math.min(700, Math.log(0.25 / probability)));
        else kl += mass * 0.25;
        later[next[i]] += mass * probability;
        expectedReward += mass * probability * reward[next[i]];
        expectedTrueReward += mass * probability * trueReward[next[i]];
      }
    }
    occupancy = later;
    for (let cell = 0; cell < cells; cell += 1) visits[cell] = ends[cell] ? occupancy[cell] : visits[cell] + occupancy[cell];
  }
  return { policies, visits, kl, reward: expectedReward, trueReward: expectedTrueReward, beta };
}

/** The policy of the gridworld with the largest expected reward under a KL budget in nats per episode. */
export function gridToBudget(world, budget, trueReward) {
  return softGrid(world, betaFor(budget, (beta) => softGrid(world, beta).kl), trueReward);
}

/** The best policies at penalty weights from infinite to small, up to a KL: the frontier of reward against KL. */
export function gridFrontier(world, maxKl, trueReward) {
  const points = [softGrid(world, Infinity, trueReward)];
  for (let logBeta = 2; logBeta > -8; logBeta -= 0.08) {
    points.push(softGrid(world, Math.exp(logBeta), trueReward));
    if (points.at(-1).kl > maxKl) break;
  }
  return points;
}
