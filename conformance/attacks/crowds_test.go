package attacks

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
)

const (
	servers   = 3    // that are attacked
	many      = 2000 // clients
	handshook = 250  // handshakes a second that the attacker makes: they cost it as much as the servers
	bulky     = 40   // dials a second, if a mebibyte follows each
	beside    = 40   // dials a second while rotations are measured
)

// namedCrowd is one of the crowds.
type namedCrowd struct {
	name string
	crowd
}

// crowds has thousands of clients at a time that take their time.
func (c *cluster) crowds(t *testing.T) {
	nonMembers := c.nonMembers(t)
	member, err := c.source(string(stolen))()
	if err != nil {
		t.Fatal(err)
	}
	hello := clientHello(t)
	as := func(conf *tls.Config, alpn string, act func(context.Context, net.Conn)) func(context.Context, int, net.Conn) {
		return func(ctx context.Context, i int, raw net.Conn) {
			who := conf
			if who == nil {
				who = nonMembers[i%len(nonMembers)]
			}
			if tc, err := admitted(raw, presenting(who, alpn)); err == nil {
				act(ctx, tc)
			}
		}
	}
	const big = peer.MaxMessage
	head := fmt.Sprintf("POST /node/encrypt HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", big)
	body := "\x00" + strings.Repeat("x", big-1)
	bodies := func(ctx context.Context, c net.Conn) {
		io.WriteString(c, head+body[:big-100])
		trickle(ctx, c, body[big-100:])
	}
	for _, a := range []namedCrowd{
		{"silent before the handshake", crowd{1000, 4 * handshook, beside, 0, func(_ context.Context, _ int, raw net.Conn) { silent(raw) }}},
		{"no end of the handshake", crowd{500, 2 * handshook, beside, 0, func(_ context.Context, i int, raw net.Conn) {
			raw.Write(hello[:len(hello)/(1+i%2)])
			silent(raw)
		}}},
		{"a member, silent", crowd{600, handshook, beside, 64*servers + handshook/4, func(ctx context.Context, i int, raw net.Conn) {
			alpn := []string{peer.ALPNPeer, peer.ALPNRaft}[i%2]
			as(member, alpn, func(_ context.Context, c net.Conn) { silent(c) })(ctx, i, raw)
		}}},
		{"non-members, silent or a header byte by byte", crowd{400, handshook, beside, 32*servers + handshook*3/4, func(ctx context.Context, i int, raw net.Conn) {
			as(nil, peer.ALPNPeer, func(ctx context.Context, c net.Conn) {
				if i/addresses%2 == 0 {
					trickle(ctx, c, head)
				}
				silent(c)
			})(ctx, i, raw)
		}}},
		{"non-members, the end of a body byte by byte", crowd{50, bulky, bulky / 4, 0, as(nil, peer.ALPNPeer, bodies)}},
		{"a member, the end of a body byte by byte", crowd{50, bulky, bulky / 4, 0, as(member, peer.ALPNPeer, bodies)}},
		{"a member, answers unread", crowd{15, bulky / 4, bulky / 8, 0, as(member, peer.ALPNPeer, func(ctx context.Context, c net.Conn) {
			for range 4 {
				if _, err := io.WriteString(c, head+body); err != nil {
					return
				}
			}
			<-ctx.Done()
		})}},
	} {
		c.crowd(t, a)
	}
}

// crowd has one crowd attack while members come and keys rotate.
func (c *cluster) crowd(t *testing.T, a namedCrowd) {
	t.Run(a.name, func(t *testing.T) {
		c.under(t, func(t *testing.T, rotations func()) {
			c.attack(t, a.crowd, func() {
				c.membersGetIn(t)
				rotations()
			})
		})
	})
}

// nonMembers are many identities, none of them a member's.
func (c *cluster) nonMembers(t *testing.T) (all []*tls.Config) {
	t.Helper()
	for i := range addresses {
		conf, err := c.source(fmt.Sprintf("x%d", i))()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, conf)
	}
	return all
}

// silent waits until the server hangs up.
func silent(c net.Conn) { io.Copy(io.Discard, c) }

// trickle writes a byte a second.
func trickle(ctx context.Context, c io.Writer, s string) {
	ticks := time.NewTicker(time.Second)
	defer ticks.Stop()
	for i := range s {
		if _, err := io.WriteString(c, s[i:i+1]); err != nil {
			return
		}
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

// clientHello is the first flight of a client.
func clientHello(t *testing.T) []byte {
	t.Helper()
	here, there := net.Pipe()
	defer there.Close()
	go func() { // ends when there is closed
		tls.Client(here, presenting(nil, peer.ALPNPeer)).Handshake()
		here.Close()
	}()
	b := make([]byte, 8<<10)
	n, err := there.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}
