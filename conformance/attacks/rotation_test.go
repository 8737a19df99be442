package attacks

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
)

const (
	rotations = 9   // of which the median counts
	slower    = 2.0 // than without an attack a rotation may be
	beside    = 40  // dials a second
	rounds    = 3   // one of which is to be within the bound: other work of the machine's may be in the others
)

// rotation compares how long rotations take with and without a crowd of clients that are silent before
// the handshake, in the middle of it, and after it. What is compared is this software, not the machine:
// the crowd is as large as the others, and arrives slowly enough to leave the processors alone.
func (c *cluster) rotation(t *testing.T) {
	stranger := c.conf(t, "s9")
	hello := clientHello(t)
	act := func(ctx context.Context, i int, raw net.Conn) {
		switch i % 4 {
		case 0:
			silent(raw)
		case 1:
			raw.Write(hello)
			silent(raw)
		default:
			if tc, err := admitted(raw, presenting(stranger, peer.ALPNPeer)); err == nil {
				trickle(ctx, tc, "POST /node/rotate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
			}
		}
	}
	for range rounds {
		c.settle(t)
		before := c.rotate(t)
		var during time.Duration
		c.attack(t, crowd{many, *attackTime, beside, act}, func(t *testing.T) { during = c.rotate(t) })
		c.settle(t)
		after := c.rotate(t)
		ratio := float64(during) / float64(max(before, after))
		t.Logf("rotations take %v under attack, %v before it, %v after it: %.2f times as long, at most %v are fine", during, before, after, ratio, slower)
		if ratio <= slower {
			return
		}
	}
	t.Error("the attacker delays rotations")
}

// rotate has every server asked in turn, and returns the median of how long they took.
func (c *cluster) rotate(t *testing.T) time.Duration {
	t.Helper()
	var took []time.Duration
	for i := range rotations {
		began := time.Now()
		c.honest[i%len(c.honest)].must(t, "Rotate", nil, new(keyring.KeyID))
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2].Round(10 * time.Microsecond)
}
