// Makes the calls of examples with analytics.js, in a browser. What Segment's page about Vero has
// is made word for word.

const examples = {
  // For a visitor who has been identified, analytics.js sends that user's id in place of this one.
  alias: analytics => [analytics.alias('8765309', 'example@example.com')],

  tags: analytics => [
    analytics.identify('324LKJF', {
      email: 'example@example.com'
    }, {
      integrations: {
        Vero: {
          tags: {
            id: '235FAG', // This is optional! If not defined, we default to the event's userId (ie: 324LKJF)
            action: 'add',
            values: ['warriors', 'giants', 'niners']
          }
        }
      }
    }),
  ],

  group: analytics => [analytics.group('acme-1', { name: 'Acme', sizes: [7, 2.5, null] })],

  page: analytics => [analytics.page('Pricing')],

  screen: analytics => [analytics.screen('Settings')],

  unsubscribe: analytics => [
    analytics.track('Unsubscribe', {
      id: '12345'
    }),
  ],

  burst: analytics => Array.from({ length: 60 }, (_, number) => (
    analytics.track('Ordered', { number })
  )),
}

/**
 * Make the calls of the named examples; return how many there were, and the errors.
 * An example begins when the one before it has been sent.
 */
async function make(host, writeKey, names, options) {
  const { protocol, host: apiHost } = new URL(host)
  const settings = { apiKey: writeKey, apiHost: `${apiHost}/v1`, protocol: protocol.slice(0, -1) }
  const cdnSettings = { integrations: { 'Segment.io': { ...settings, ...options } } }
  const [analytics] = await AnalyticsNext.AnalyticsBrowser.load({ writeKey, cdnSettings })
  const errors = []
  analytics.on('error', error => errors.push(String(error.reason)))
  let calls = 0
  for (const name of names) {
    calls += (await Promise.all(examples[name](analytics))).length
  }
  return { calls, errors }
}
