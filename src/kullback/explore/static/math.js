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

/** The log-density of a mixture of normal distributions at x. */
export function logDensity(parts, x) {
  let top = -Infinity;
  const logs = parts.map(({ weight, mean, sd }) => {
    const z = (x - mean) / sd;
    const value = Math.log(weight) - Math.log(sd) - HALF_LOG_TAU - 0.5 * z * z;
    if (value > top) top = value;
    return value;
  });
  if (logs.length === 1) return logs[0];
  let sum = 0;
  for (const value of logs) sum += Math.exp(value - top);
  return top + Math.log(sum);
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
  // The integrand equals q - p + p log(p/q). Outside of the grid the last term is negligible, so the masses suffice.
  return Math.max(0, step * kl + (1 - step * massQ) - (1 - step * massP));
}

const normal = (mean, sd) => [{ weight: 1, mean, sd }];

/** "forward": KL(P || Q), "reverse": KL(Q || P), where P is the mixture `target` and Q is the normal with this mean and sd. */
export const klTo = (direction, target, mean, sd, pointsPerSd) =>
  direction === "forward" ? klOfDensities(target, normal(mean, sd), pointsPerSd) : klOfDensities(normal(mean, sd), target, pointsPerSd);

/** Natural-gradient descent from `start` with bounded steps and backtracking: [{ mean, sd, kl }]. */
export function descend(direction, target, start, maxSteps = 120) {
  let [mean, sd] = [start.mean, start.sd];
  let kl = klTo(direction, target, mean, sd);
  const path = [{ mean, sd, kl }];
  for (let step = 0; step < maxSteps; step += 1) {
    const h = 1e-3;
    const klAt = (a, b) => klTo(direction, target, mean + a * h * sd, sd * Math.exp(b * h));
    const gradient = [(klAt(1, 0) - klAt(-1, 0)) / (2 * h), (klAt(0, 1) - klAt(0, -1)) / (2 * h)];
    // The Fisher information of a normal distribution is diag(1, 2) in the coordinates mean / sd and log sd.
    let move = [-gradient[0], -gradient[1] / 2];
    const length = Math.hypot(move[0], Math.SQRT2 * move[1]);
    if (length < 1e-7) break;
    if (length > 0.5) move = move.map((part) => (part * 0.5) / length);
    let found = false;
    for (let size = 1; size > 1e-4; size /= 2) {
      const [newMean, newSd] = [mean + size * move[0] * sd, sd * Math.exp(size * move[1])];
      const value = klTo(direction, target, newMean, newSd);
      if (value < kl) {
        found = true;
        [mean, sd, kl] = [newMean, newSd, value];
        break;
      }
    }
    if (!found) break;
    path.push({ mean, sd, kl });
  }
  return path;
}

/** KL on a grid of means and standard deviations, with a row for each standard deviation. */
export function klMap(direction, target, means, sds) {
  return sds.map((sd) => means.map((mean) => klTo(direction, target, mean, sd, 2)));
}

/** The local minima, found by descents from the local minima of the map: [{ mean, sd, kl }] in increasing order of KL. */
export function localMinima(direction, target, means, sds, map) {
  const found = [];
  map.forEach((row, i) => row.forEach((value, j) => {
    const around = [-1, 0, 1].flatMap((a) => [-1, 0, 1].map((b) => map[i + a]?.[j + b] ?? Infinity));
    if (value > Math.min(...around)) return;
    const end = descend(direction, target, { mean: means[j], sd: sds[i] }, 400).at(-1);
    const same = found.some((other) => Math.abs(other.mean - end.mean) < 0.05 * end.sd && Math.abs(Math.log(other.sd / end.sd)) < 0.05);
    if (!same) found.push(end);
  }));
  return found.sort((a, b) => a.kl - b.kl);
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

/** The beta at which klAt(beta), a decreasing function of beta, equals the budget, by bisection on log beta. */
function betaFor(budget, klAt) {
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

/** The policy with the largest expected reward under a KL budget in nats. */
export const tiltToBudget = (reference, reward, budget) =>
  tilt(reference, reward, betaFor(budget, (beta) => tilt(reference, reward, beta).kl));

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
  const uniform = [0.25, 0.25, 0.25, 0.25];
  let value = new Array(cells).fill(0);
  const policies = [];
  for (let t = horizon - 1; t >= 0; t -= 1) {
    const nextValue = value;
    const policy = [];
    value = nextValue.map((_, cell) => {
      if (terminal.includes(cell)) {
        policy.push(uniform);
        return 0;
      }
      const actionValues = MOVES.map((_move, action) => {
        const next = nextCell(side, cell, action);
        return reward[next] + nextValue[next];
      });
      const logits = actionValues.map((actionValue) => actionValue / beta + Math.log(0.25));
      policy.push(beta === Infinity ? uniform : softmax(logits));
      return beta === Infinity ? actionValues.reduce((sum, actionValue) => sum + actionValue / 4, 0) : beta * logSumExp(logits);
    });
    policies.unshift(policy);
  }
  let occupancy = new Array(cells).fill(0);
  occupancy[start] = 1;
  const visits = [...occupancy];
  let [kl, expectedReward, expectedTrueReward] = [0, 0, 0];
  for (const policy of policies) {
    const nextOccupancy = new Array(cells).fill(0);
    occupancy.forEach((mass, cell) => {
      if (mass === 0) return;
      if (terminal.includes(cell)) {
        nextOccupancy[cell] += mass;
        return;
      }
      kl += mass * klProbs(policy[cell], uniform);
      policy[cell].forEach((probability, action) => {
        const next = nextCell(side, cell, action);
        nextOccupancy[next] += mass * probability;
        expectedReward += mass * probability * reward[next];
        expectedTrueReward += mass * probability * trueReward[next];
      });
    });
    occupancy = nextOccupancy;
    occupancy.forEach((mass, cell) => { if (!terminal.includes(cell)) visits[cell] += mass; });
    terminal.forEach((cell) => { visits[cell] = occupancy[cell]; });
  }
  return { policies, visits, kl, reward: expectedReward, trueReward: expectedTrueReward, beta };
}

/** The policy of the gridworld with the largest expected reward under a KL budget in nats per episode. */
export function gridToBudget(world, budget, trueReward) {
  return softGrid(world, betaFor(budget, (beta) => softGrid(world, beta).kl), trueReward);
}
