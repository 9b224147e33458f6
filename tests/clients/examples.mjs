// The calls that customers' programs make, as `analytics.METHOD(MESSAGE)`.
//
// The examples on Segment's page about Vero have the signatures of analytics.js. Segment's
// libraries for Node.js do not take these; this is how the same calls are made with them.

const address = 'example@example.com'

const optIn = { userId: address, traits: { email: address, plan: 'free' } }

const tagged = {
  userId: '324LKJF',
  traits: { email: address },
  integrations: {
    Vero: { tags: { id: '235FAG', action: 'add', values: ['warriors', 'giants', 'niners'] } },
  },
}

const page = {
  userId: '324LKJF',
  name: 'Pricing',
  properties: { url: 'https://shop.example.com/pricing', title: 'Pricing' },
}

const joined = {
  userId: '324LKJF',
  groupId: 'acme-1',
  traits: { name: 'Acme', sizes: [7, 2.5, null] },
}

const orders = Array.from({ length: 300 }, (_, number) => (
  { userId: `1234${number % 10}`, event: 'Ordered', properties: { number } }
))

const examples = {
  identify: [['identify', optIn]],
  alias: [['alias', { previousId: address, userId: '8765309' }]],
  tags: [['identify', tagged]],
  group: [['group', joined]],
  page: [['page', page]],
  screen: [['screen', { userId: '324LKJF', name: 'Settings' }]],
  unsubscribe: [['track', { userId: '12345', event: 'Unsubscribe', properties: { id: '12345' } }]],
  burst: orders.map(order => ['track', order]),
}

/**
 * Make the calls of the named examples; return how many there were, and the errors.
 * An example begins when the one before it has been sent.
 */
export async function make(analytics, names) {
  const outcomes = []
  for (const name of names) {
    const calls = examples[name].map(([method, message]) => new Promise(resolve => {
      analytics[method](message, resolve)
    }))
    const [, ...errors] = await Promise.all([analytics.flush(), ...calls])
    outcomes.push(...errors)
  }
  return { calls: outcomes.length, errors: outcomes.filter(Boolean).map(String) }
}
