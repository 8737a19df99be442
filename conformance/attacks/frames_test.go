package attacks

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
)

// Types of raft's frames.
const (
	appendEntries = iota
	requestVote
	installSnapshot
	timeoutNow
	requestPreVote
	noFrame // the first that there is not
)

// frame is one of raft's, from the fourth member, in term 0: raft answers it and does nothing.
func (c *cluster) frame(kind byte, fields map[string]any) []byte {
	all := map[string]any{
		"ProtocolVersion": 3, "ID": []byte(stolen), "Addr": []byte(c.fourth.addr), "Term": 0, "SnapshotVersion": 1,
	}
	for k, v := range fields {
		all[k] = v
	}
	return append([]byte{kind}, pack(all)...)
}

// unbounded is a frame that has one field more, whose value is given as it is.
func unbounded(kind byte, field string, value ...byte) []byte {
	b := append([]byte{kind, 0x81}, pack([]byte(field))...)
	return append(b, value...)
}

// badFrames is what the fourth member sends.
type badFrames struct {
	name  string
	conns int // at a time, at each server
	act   func(ctx context.Context, w io.Writer)
}

// raftFrames has the fourth member send frames that are too large, too deep, cut short or none at all.
func (c *cluster) raftFrames(t *testing.T) {
	member, err := c.source(string(stolen))()
	if err != nil {
		t.Fatal(err)
	}
	const lies = 200 << 20
	long := []byte{0xdb, lies >> 24, lies >> 16 & 0xff, lies >> 8 & 0xff, lies & 0xff}
	entries := append([]byte{0xdd, 0, 0, 0, 1, 0x81}, append(pack([]byte("Data")), long...)...)
	chunk := bytes.Repeat([]byte("x"), 1<<20)
	for _, a := range append(c.brokenFrames(), []badFrames{
		{"200 MiB declared", 8, func(_ context.Context, w io.Writer) {
			w.Write(unbounded(appendEntries, "Entries", entries...))
		}},
		{"200 MiB in an entry", 1, func(ctx context.Context, w io.Writer) {
			w.Write(unbounded(appendEntries, "Entries", entries...))
			flood(ctx, w, chunk, lies)
		}},
		{"200 MiB in a field that is unknown", 1, func(ctx context.Context, w io.Writer) {
			w.Write(unbounded(requestVote, "Unknown", long...))
			flood(ctx, w, chunk, lies)
		}},
		{"arrays in arrays", 2, func(_ context.Context, w io.Writer) {
			w.Write(unbounded(appendEntries, "Unknown", bytes.Repeat([]byte{0x91}, 1e6)...))
		}},
		{"maps in maps", 2, func(_ context.Context, w io.Writer) {
			w.Write(unbounded(installSnapshot, "Unknown", bytes.Repeat([]byte{0x81, 0x01}, 1e6)...))
		}},
		{"ten million levels", 1, func(_ context.Context, w io.Writer) {
			w.Write(unbounded(appendEntries, "Unknown", bytes.Repeat([]byte{0x91}, 1e7)...))
		}},
		{"a million entries", 2, func(_ context.Context, w io.Writer) {
			const n = 1_000_000
			b := append([]byte{0xdd, n >> 24, n >> 16 & 0xff, n >> 8 & 0xff, n & 0xff}, bytes.Repeat([]byte{0x80}, n)...)
			w.Write(unbounded(appendEntries, "Entries", b...))
		}},
		{"four billion entries declared", 8, func(_ context.Context, w io.Writer) {
			w.Write(unbounded(appendEntries, "Entries", 0xdd, 0xff, 0xff, 0xff, 0xff))
		}},
	}...) {
		t.Run(a.name, func(t *testing.T) {
			c.under(t, again(func(t *testing.T) { c.with(t, member, peer.ALPNRaft, a.conns, frameTime, a.act) }))
		})
	}
	t.Run("snapshots that do not come, or have no end", func(t *testing.T) { c.snapshots(t, member) })
	t.Run("are understood", func(t *testing.T) { c.understood(t, member) })
}

// brokenFrames are short or none at all.
func (c *cluster) brokenFrames() []badFrames {
	return []badFrames{
		{"a snapshot of a negative size", 1, func(_ context.Context, w io.Writer) {
			w.Write(c.frame(installSnapshot, map[string]any{"Size": packed{0xd3, 0xff, 0, 0, 0, 0, 0, 0, 0}}))
		}},
		{"a frame cut short", 8, func(_ context.Context, w io.Writer) {
			b := c.frame(appendEntries, nil)
			w.Write(b[:len(b)/2])
		}},
		{"types that there are not", 8, func(_ context.Context, w io.Writer) {
			for kind := noFrame; kind < 256; kind += 10 {
				w.Write([]byte{byte(kind), 0x80})
			}
		}},
		{"garbage", 8, func(_ context.Context, w io.Writer) { w.Write(garbage(1)) }},
		{"garbage in a frame", 8, func(_ context.Context, w io.Writer) { w.Write(append([]byte{appendEntries}, garbage(7)...)) }},
	}
}

func garbage(seed byte) []byte {
	b := make([]byte, 1<<16)
	for i := range b {
		seed = seed*5 + 113
		b[i] = seed
	}
	return b
}

// understood makes sure that the frames are raft's: a good one is answered.
func (c *cluster) understood(t *testing.T, member *tls.Config) {
	for _, p := range c.honest {
		raw, err := dial(t.Context(), 1, p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		tc, err := admitted(raw, presenting(member, peer.ALPNRaft))
		if err != nil {
			t.Fatal(err)
		}
		tc.SetDeadline(time.Now().Add(5 * time.Second))
		tc.Write(c.frame(appendEntries, map[string]any{"Entries": []any{}}))
		b := make([]byte, 1024)
		n, err := tc.Read(b)
		if err != nil || !bytes.Contains(b[:n], []byte("LastLog")) {
			t.Errorf("%s: raft answers %q, %v", p.id, b[:n], err)
		}
	}
}

// snapshots has the fourth member begin snapshots. Raft reads those where it does everything else, so
// that all waits until the server has had enough: that has to be soon, and then all goes on.
func (c *cluster) snapshots(t *testing.T, member *tls.Config) {
	begin := c.frame(installSnapshot, map[string]any{"Size": uint64(1 << 60)})
	c.underFor(t, snapshotWithin+callWithin, once(func(t *testing.T) {
		turn := make(chan bool, 2*len(c.honest))
		for i := range cap(turn) {
			turn <- i%2 == 0
		}
		kept := c.with(t, member, peer.ALPNRaft, 1, 2*snapshotWithin, func(ctx context.Context, w io.Writer) {
			if w.Write(begin); <-turn {
				trickle(ctx, w, strings.Repeat("x", 3600))
			}
		})
		if kept > 0 {
			t.Errorf("%d connections are kept on which a snapshot does not come", kept)
		}
	}))
}

const (
	handshakeTime  = 10 * time.Millisecond // between two, which cost the attacker as much as the server
	mebibyteTime   = 50 * time.Millisecond // between two calls, each of which may have a mebibyte to be read and decoded
	frameTime      = time.Second           // how long the attacker keeps a connection that the server does not close
	snapshotWithin = 10 * time.Second      // what raft's own transport waits for an answer: no member's snapshot stops for longer
)

// with has so many connections of a member at each server, and what they do on them done once. It returns
// how many are kept open after that time.
func (c *cluster) with(t *testing.T, member *tls.Config, alpn string, conns int, held time.Duration, act func(context.Context, io.Writer)) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), held)
	defer cancel()
	var wg sync.WaitGroup
	var kept atomic.Int64
	for i := range conns * len(c.honest) {
		<-time.After(handshakeTime)
		wg.Go(func() {
			raw, err := dial(ctx, i, c.honest[i%len(c.honest)].addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer raw.Close()
			tc, err := admitted(raw, presenting(member, alpn))
			if err != nil {
				return // the server may have had enough of this member
			}
			stop := context.AfterFunc(ctx, func() { raw.Close() })
			act(ctx, tc)
			if silent(tc); !stop() {
				kept.Add(1)
			}
		})
	}
	wg.Wait()
	return int(kept.Load())
}

// flood writes so many bytes, at a pace that leaves the machine to the servers.
func flood(ctx context.Context, w io.Writer, chunk []byte, n int) {
	ticks := time.NewTicker(5 * time.Millisecond)
	defer ticks.Stop()
	for sent := 0; sent < n; sent += len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			return
		}
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

// calls has the fourth member send calls that are none.
func (c *cluster) calls(t *testing.T) {
	member, err := c.source(string(stolen))()
	if err != nil {
		t.Fatal(err)
	}
	post := func(path, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	}
	const hello = `{"version":1,"hello":{}}`
	long, deep := strings.Repeat("x", peer.MaxMessage+1), strings.Repeat("[", 1e6)
	c.under(t, once(func(t *testing.T) {
		for _, a := range []struct {
			name, said string
			want       string // of the answer: its first bytes; empty if there need not be one
		}{
			{"a body too large", post("/keyring", long), "HTTP/1.1 400"},
			{"a body too large declared", "POST /keyring HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000000000000\r\n\r\n" + long, "HTTP/1.1 400"},
			{"a negative length", "POST /keyring HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 400"},
			{"two lengths", "POST /keyring HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "HTTP/1.1 400"},
			{"a length and chunks", "POST /keyring HTTP/1.1\r\nHost: x\r\nContent-Length: 24\r\nTransfer-Encoding: chunked\r\n\r\n" + hello + "\r\n", "HTTP/1.1 400"},
			{"a message cut short", post("/keyring", hello[:len(hello)-1]), "HTTP/1.1 200"},
			{"a message and more", post("/keyring", hello+" "), "HTTP/1.1 200"},
			{"arrays in arrays", post("/keyring", deep), "HTTP/1.1 200"},
			{"objects in objects", post("/keyring", strings.Repeat(`{"a":`, 2e5)), "HTTP/1.1 200"},
			{"an ID in arrays", post("/keyring", `{"version":1,"ask":{"ids":`+deep[:9e5]), "HTTP/1.1 200"},
			{"a join of arrays", post("/node/join", `{"addr":`+deep[:9e5]), "HTTP/1.1 403"},
			{"options in arrays", post("/node/rotate", "\x00"+`{"Publish":`+deep[:9e5]), "HTTP/1.1 403"},
			{"AAD longer than all", post("/node/encrypt", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x"), "HTTP/1.1 403"},
			{"a length that has no end", post("/node/decrypt", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "HTTP/1.1 403"},
			{"no path", post("/", hello), "HTTP/1.1 403"},
			{"a path with dots", post("/x/../keyring", hello), "HTTP/1.1 403"},
			{"a path with slashes", post("//keyring", hello), "HTTP/1.1 403"},
			{"a path in another case", post("/Keyring", hello), "HTTP/1.1 403"},
			{"GET", "GET /keyring HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400"},
			{"CONNECT", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n", "HTTP/1.1 400"},
			{"another host's", post("http://127.0.0.1:22/x", hello), "HTTP/1.1 403"},
			{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "HTTP/1.1 "},
			{"an upgrade", "POST /keyring HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200"},
			{"a header of a mebibyte", "POST /keyring HTTP/1.1\r\nHost: x\r\nX: " + long + "\r\n\r\n", "HTTP/1.1 431"},
			{"a hundred thousand headers", "POST /keyring HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 1e5) + "\r\n", "HTTP/1.1 431"},
			{"a first line of a mebibyte", "POST /" + long + " HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 431"},
			{"a thousand at once", strings.Repeat(post("/keyring", hello), 1000), "HTTP/1.1 200"},
			{"garbage", strings.Repeat("\x00\xff\r\n", 1000), "HTTP/1.1 400"},
		} {
			t.Run(a.name, func(t *testing.T) { c.tell(t, member, a.said, a.want) })
		}
	}))
	t.Run("holds of many keys", func(t *testing.T) {
		c.holds(t, member)
	})
	t.Run("chunks that have no end", func(t *testing.T) {
		c.under(t, again(func(t *testing.T) {
			chunk := []byte("10000\r\n" + strings.Repeat("x", 1<<16) + "\r\n")
			c.with(t, member, peer.ALPNPeer, 4, frameTime, func(ctx context.Context, w io.Writer) {
				io.WriteString(w, "POST /keyring HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
				flood(ctx, w, chunk, 1<<30)
			})
		}))
	})
}

// holds has the fourth member say that it has many keys that there are not.
func (c *cluster) holds(t *testing.T, member *tls.Config) {
	leader := c.leader(t)
	keystore, _ := leader.ring(t).Keystore(string(stolen)) // else the news is its keystore
	c.under(t, once(func(t *testing.T) {
		l := c.dialAs(t, member, leader)
		defer l.Close()
		for i := range 10 {
			<-time.After(2 * mebibyteTime)
			hold := &peer.HoldRequest{Keystore: peer.ID(keystore)}
			for j := range peer.MaxIDs {
				hold.Gained = append(hold.Gained, peer.ID{byte(i), byte(j >> 8), byte(j)})
			}
			if code, answer, err := l.post("/keyring", encode(t, peer.Request{Hold: hold})); err != nil || code != 200 {
				t.Fatalf("%d %q %v", code, answer, err)
			}
		}
	}))
}

// tell says the same to every server, and looks at how its first answer begins. One with status 200 is
// a refusal of the keyring's, or its answer to hello.
func (c *cluster) tell(t *testing.T, member *tls.Config, said, want string) {
	t.Helper()
	for i, p := range c.honest {
		<-time.After(mebibyteTime)
		raw, err := dial(t.Context(), i, p.addr)
		if err != nil {
			t.Fatal(err)
		}
		tc, err := admitted(raw, presenting(member, peer.ALPNPeer))
		if err != nil {
			t.Fatal(err)
		}
		raw.SetDeadline(time.Now().Add(5 * time.Second))
		var wg sync.WaitGroup
		wg.Go(func() { io.WriteString(tc, said) }) // it may not be let finish
		b := make([]byte, 1024)
		n, err := io.ReadAtLeast(tc, b, len(want))
		if !strings.HasPrefix(string(b[:n]), want) {
			t.Errorf("%s answers %q, %v, want %s", p.id, b[:n], err, want)
		}
		raw.Close()
		wg.Wait()
	}
}
