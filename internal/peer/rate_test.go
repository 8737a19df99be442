package peer_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/peer"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// part is what is sent after a while.
type part struct {
	after time.Duration
	bytes []byte
}

// every cuts b in parts of n bytes, one each time d has passed.
func every(d time.Duration, b []byte, n int) (parts []part) {
	for c := range slices.Chunk(b, n) {
		parts = append(parts, part{d, c})
	}
	return parts
}

// sentTo sends the parts to a connection that wrap bounds, then nothing, and returns what came out, and
// when and how that ended; after a day it hangs up.
func sentTo(t *testing.T, wrap func(net.Conn) net.Conn, parts []part) (got []byte, took time.Duration, err error) {
	t.Helper()
	here, there := net.Pipe()
	began := time.Now()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for _, p := range append(parts, part{24 * time.Hour, nil}) {
			time.Sleep(p.after)
			if _, err := here.Write(p.bytes); err != nil {
				return
			}
		}
		here.Close()
	}()
	got, err = io.ReadAll(wrap(there))
	took = time.Since(began)
	there.Close()
	<-sent
	return got, took, err
}

// Raft would wait for a snapshot as long as it takes, and do nothing else.
func TestSlowRequestsEnd(t *testing.T) {
	t.Parallel()
	whole, huge, vote := entries(3, 40<<10), snapshot(1<<60), request(requestVote, new(raft.RequestVoteRequest))
	block := make([]byte, 64<<10)
	for name, c := range map[string]struct {
		parts []part
		after time.Duration
	}{
		"a type":                           {[]part{{0, vote[:1]}}, 10 * time.Second},
		"half a request":                   {[]part{{time.Hour, whole[:9000]}}, time.Hour + 10*time.Second},
		"a request byte by byte":           {every(time.Second, vote, 1), 11 * time.Second},
		"a snapshot that does not come":    {[]part{{0, huge}}, 10 * time.Second},
		"a snapshot byte by byte":          {append([]part{{0, huge}}, every(time.Second, block, 1)...), 10 * time.Second},
		"a snapshot that stops":            {append([]part{{0, huge}}, every(9*time.Second, make([]byte, 100<<16), 1<<16)...), 910 * time.Second},
		"a snapshot that stops at its end": {append([]part{{0, snapshot(100)}}, part{time.Second, block[:99]}), 10 * time.Second},
		"the next request":                 {[]part{{0, whole}, {time.Hour, vote[:9]}}, time.Hour + 10*time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			got, took, err := sentTo(t, peer.RaftRequests, c.parts)
			if err == nil || !strings.Contains(err.Error(), "too slowly") || took != c.after {
				t.Errorf("%s: %d bytes, %v after %v, want it refused after %v", name, len(got), err, took, c.after)
			}
		})
	}
}

func TestRequestsThatComeSlowlyPass(t *testing.T) {
	t.Parallel()
	data := make([]byte, 1<<20)
	whole, vote := entries(3, 40<<10), request(requestVote, new(raft.RequestVoteRequest))
	for name, parts := range map[string][]part{
		"hours between requests":    {{time.Hour, whole}, {time.Hour, vote}, {time.Hour, append(vote[:len(vote):len(vote)], whole...)}},
		"a request of many steps":   every(9*time.Second, whole, 1<<16),
		"a snapshot of many steps":  append([]part{{0, whole}, {time.Hour, snapshot(1 << 20)}}, every(9*time.Second, data, 1<<16)...),
		"steps in parts":            append([]part{{0, snapshot(1 << 20)}}, every(2*time.Second, data, 1<<14)...),
		"each request has its time": {{0, vote[:9]}, {9 * time.Second, slices.Concat(vote[9:], vote[:9])}, {9 * time.Second, vote[9:]}, {time.Hour, vote}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var want []byte
			for _, p := range parts {
				want = append(want, p.bytes...)
			}
			if got, _, err := sentTo(t, peer.RaftRequests, parts); !bytes.Equal(got, want) || err != nil {
				t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
			}
		})
	}
}

// Raft's own deadlines are those of the answers.
func TestAnswersMayTakeTheirTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answer := pack("", filled[raft.RequestVoteResponse](20))
		parts := every(time.Minute, answer, 1)
		if got, _, err := sentTo(t, peer.RaftAnswers, parts); !bytes.Equal(got, answer) || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// What a slow disk takes here is not the sender's time.
func TestSlowReadersGetTheirSnapshot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		const size = 1 << 20
		go func() {
			here.Write(append(snapshot(size), make([]byte, size)...))
			here.Close()
		}()
		r, buf, n := peer.RaftRequests(there), make([]byte, 4<<10), 0
		for {
			m, err := r.Read(buf)
			n += m
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("after %d bytes: %v", n, err)
			}
			time.Sleep(time.Minute)
		}
		if want := len(snapshot(size)) + size; n != want {
			t.Errorf("%d bytes of %d", n, want)
		}
	})
}

// TestRaftIsNotHeldUpByASnapshot that does not come: it reads that in the goroutine that does
// everything else.
func TestRaftIsNotHeldUpByASnapshot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ln := newPipes()
		trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: stream{ln, peer.RaftRequests}, MaxPool: 3, Logger: hclog.NewNullLogger(),
		})
		c, err := ln.DialContext(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		go c.Write(append(snapshot(1<<60), make([]byte, 100)...))
		rpc := <-trans.Consumer()
		n, err := io.Copy(io.Discard, rpc.Reader)
		if took := time.Since(began); n != 100 || err == nil || took != 10*time.Second {
			t.Errorf("%d bytes, %v, after %v", n, err, took)
		}
		if again, err := io.Copy(io.Discard, rpc.Reader); again != 0 || err == nil { // so does raft after that
			t.Errorf("then %d bytes, %v", again, err)
		}
		rpc.Respond(nil, errors.New("short"))
		ended(t, struct{ net.Conn }{c})
		trans.Close()
	})
}
