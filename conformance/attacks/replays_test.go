package attacks

import (
	"crypto/tls"
	"errors"
	"slices"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
)

// Requests are played this many times a second: more of them would measure the processors.
const playedPerSecond = 500

// times is how often each is played, to all servers together.
func times() int { return int(200 * attackTime.Seconds()) }

// dialAs is a client of a server's, with the certificate of that ID.
func (c *cluster) dialAs(t *testing.T, conf *tls.Config, p *process) *line {
	t.Helper()
	raw, err := dial(t.Context(), 2, p.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	tc, err := admitted(raw, presenting(conf, peer.ALPNPeer))
	if err != nil {
		t.Fatal(err)
	}
	raw.SetDeadline(time.Now().Add(time.Minute))
	return newLine(tc)
}

// conf is the TLS configuration of the server with that ID.
func (c *cluster) conf(t *testing.T, id string) *tls.Config {
	t.Helper()
	conf, err := c.source(id)()
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

func encode(t *testing.T, r peer.Request) []byte {
	t.Helper()
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// requests are one of each kind, as the second server would make them, of the active key and some others.
func requests(t *testing.T, ring *meta.Ring) map[string][]byte {
	t.Helper()
	ids := []peer.ID{peer.ID(ring.Active().ID)}
	for _, k := range ring.Keys[:min(8, len(ring.Keys))] { // a server reads the file of each that it is asked for
		if k != ring.Active() {
			ids = append(ids, peer.ID(k.ID))
		}
	}
	pull, err := peer.NewFetch(ids[:1])
	if err != nil {
		t.Fatal(err)
	}
	keystore, _ := ring.Keystore("s2")
	k := ring.Keys[0]
	return map[string][]byte{
		"hello":   encode(t, peer.Request{Hello: &peer.HelloRequest{}}),
		"fetch":   pull.Request(),
		"hold":    encode(t, peer.Request{Hold: &peer.HoldRequest{Keystore: peer.ID(keystore), Gained: ids}}),
		"ask":     encode(t, peer.Request{Ask: &peer.AskRequest{IDs: ids}}),
		"removed": encode(t, peer.Request{Removed: &peer.RemovedRequest{IDs: ids}}),
		"offer": encode(t, peer.Request{Offer: &peer.OfferRequest{
			ID: peer.ID(k.ID), Algorithm: k.Algorithm, Check: peer.Check(k.Check), Created: k.Created.UTC(),
		}}),
	}
}

// replays plays what the second server has asked, over and over: as that server, as a member of which
// the attacker has the certificate, and as a non-member.
func (c *cluster) replays(t *testing.T) {
	c.settle(t)
	// The fourth server, whose process does not run, does not hold this one.
	var id keyring.KeyID
	c.honest[0].must(t, "Rotate", nil, &id)
	c.await(t, "all honest servers are recorded as holders", func() bool {
		return slices.Equal(c.honest[0].ring(t).Key(meta.KeyID(id)).Holders, []string{"s1", "s2", "s3"})
	})
	c.settle(t)
	ring := c.honest[0].ring(t)

	t.Run("as the same server", func(t *testing.T) {
		c.under(t, once(func(t *testing.T) {
			for kind, request := range requests(t, ring) {
				for _, p := range c.honest {
					c.replay(t, kind, c.dialAs(t, c.conf(t, "s2"), p), request, answered)
				}
			}
		}))
	})
	t.Run("as a non-member", func(t *testing.T) {
		c.under(t, once(func(t *testing.T) {
			for _, request := range requests(t, ring) {
				for _, p := range c.honest {
					c.replay(t, "as a non-member", c.dialAs(t, c.conf(t, "s9"), p), request, func(code int, answer []byte) bool {
						_, err := peer.DecodeAnswer[peer.FetchAnswer](answer)
						return isRefusal(err, peer.NotMember)
					})
				}
			}
		}))
	})
	t.Run("fetch as another member", func(t *testing.T) {
		c.under(t, again(func(t *testing.T) { c.bound(t, ring) }))
	})
	t.Run("hold as another member", func(t *testing.T) {
		c.under(t, once(func(t *testing.T) { c.holdAs(t, ring, id) }))
	})
}

// replay plays a request, and wants such an answer each time.
func (c *cluster) replay(t *testing.T, kind string, l *line, request []byte, right func(code int, answer []byte) bool) {
	t.Helper()
	defer l.Close()
	ticks := time.NewTicker(time.Second / playedPerSecond)
	defer ticks.Stop()
	for range times() / len(c.honest) {
		<-ticks.C
		code, answer, err := l.post("/keyring", request)
		if err != nil || !right(code, answer) {
			t.Fatalf("%s: %d %q %v", kind, code, answer, err)
		}
	}
}

func answered(code int, _ []byte) bool { return code == 200 }

// bound has the fourth member get answers to what the second has asked: they are of no use to it, who
// has not the key, and of none to the second, who has.
func (c *cluster) bound(t *testing.T, ring *meta.Ring) {
	for _, asker := range []string{"s2", string(stolen)} {
		pull, err := peer.NewFetch([]peer.ID{peer.ID(ring.Active().ID)})
		if err != nil {
			t.Fatal(err)
		}
		l := c.dialAs(t, c.conf(t, string(stolen)), c.honest[0])
		_, b, err := l.post("/keyring", pull.Request())
		l.Close()
		if err != nil {
			t.Fatal(err)
		}
		answer, err := peer.DecodeAnswer[peer.FetchAnswer](b)
		if err != nil || len(answer.Keys) != 1 {
			t.Fatalf("%q: %v", b, err)
		}
		secrets, err := pull.Open(peer.Binding{Cluster: ring.Cluster, Asker: asker, Answerer: "s1"}, answer)
		if opens := err == nil; opens != (asker == string(stolen)) || !opens && !errors.Is(err, peer.ErrOpen) {
			t.Errorf("bound to %s: %v", asker, err)
		}
		for _, s := range secrets {
			s.Wipe()
		}
	}
}

// holdAs has the fourth member say what the second has said. It is believed, for it is a member, and of
// itself: nobody else is a holder more or less than before.
func (c *cluster) holdAs(t *testing.T, ring *meta.Ring, id keyring.KeyID) {
	request := requests(t, ring)["hold"]
	c.replay(t, "hold", c.dialAs(t, c.conf(t, string(stolen)), c.leader(t)), request, answered)
	c.await(t, "the fourth member is recorded as it says", func() bool { return c.honest[0].ring(t).Key(meta.KeyID(id)).HeldBy(string(stolen)) })
	after := c.honest[0].ring(t)
	for _, k := range ring.Keys {
		for _, p := range c.honest {
			if id := string(p.id); k.HeldBy(id) != after.Key(k.ID).HeldBy(id) {
				t.Errorf("key %s: that %s holds it is %t now", k.ID, id, after.Key(k.ID).HeldBy(id))
			}
		}
	}
	for _, p := range c.honest {
		before, _ := ring.Keystore(string(p.id))
		if now, _ := after.Keystore(string(p.id)); now != before {
			t.Errorf("%s has another keystore", p.id)
		}
	}
}
