package peer_test

import (
	"bytes"
	"crypto/tls"
	"testing"

	"example.com/keyring/internal/peer"
)

// TestKeyExchangeIsPostQuantum whatever the host's configuration prefers, on either end, and nobody is told the keys.
func TestKeyExchangeIsPostQuantum(t *testing.T) {
	a := newCA(t)
	var told bytes.Buffer
	weak := func(id string) peer.Source {
		source := a.source(id)
		return func() (*tls.Config, error) {
			c, err := source()
			if err == nil {
				c = c.Clone()
				c.CurvePreferences, c.KeyLogWriter = []tls.CurveID{tls.CurveP256}, &told
			}
			return c, err
		}
	}
	for name, ends := range map[string][2]peer.Source{
		"the server's is weak": {weak("b"), a.source("a")},
		"the client's is weak": {a.source("b"), weak("a")},
		"both are weak":        {weak("b"), weak("a")},
	} {
		t.Run(name, func(t *testing.T) {
			p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, ends[0], everybody)})
			defer p.Close()
			p.Listener(peer.ALPNRaft)
			d := &peer.Dialer{Cluster: cluster, TLS: ends[1]}
			c, err := d.Dial(t.Context(), "b", p.Addr().String(), peer.ALPNRaft)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := c.ConnectionState().CurveID; got != tls.X25519MLKEM768 {
				t.Errorf("the keys are exchanged by %v", got)
			}
		})
	}
	if told.Len() > 0 {
		t.Errorf("a KeyLogWriter was told %d bytes", told.Len())
	}
}
