package raftwire_test

import (
	"bytes"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/raftwire"
	"github.com/hashicorp/raft"
)

// asking is a transport by which other servers ask what is put into requests.
type asking struct {
	*raft.InmemTransport
	requests chan raft.RPC
}

func (a asking) Consumer() <-chan raft.RPC { return a.requests }

// snapshotCheck hands snapshots to the checks of a server in that term, and returns why each is not handed on to
// raft.
func snapshotCheck(t *testing.T, term uint64) func(*raft.InstallSnapshotRequest, io.Reader) error {
	_, inmem := raft.NewInmemTransport("a")
	requests := make(chan raft.RPC)
	trans := raftwire.New(asking{inmem, requests}, raftwire.Checks{
		View: func() (raftwire.View, error) { return raftwire.View{Term: term}, nil },
		Section: func(r io.Reader) (io.Reader, error) {
			var section bytes.Buffer
			head, err := io.ReadAll(io.LimitReader(io.TeeReader(r, &section), 100))
			if err == nil && bytes.HasPrefix(head, []byte("keyring-snapshot")) {
				_, err = io.CopyN(&section, r, 1<<30)
			}
			return io.MultiReader(&section, r), err
		},
		Refused: func(error) {},
	})
	done := make(chan struct{})
	t.Cleanup(func() { close(done); trans.Stop() })
	go func() {
		for {
			select {
			case rpc := <-trans.Consumer():
				_, err := io.Copy(io.Discard, rpc.Reader)
				rpc.Respond(nil, err)
			case <-done:
				return
			}
		}
	}()
	return func(q *raft.InstallSnapshotRequest, r io.Reader) error {
		answer := make(chan raft.RPCResponse, 1)
		requests <- raft.RPC{Command: q, Reader: r, RespChan: answer}
		return (<-answer).Error
	}
}

// beating is a transport that heartbeats come in by.
type beating struct {
	*raft.InmemTransport
	handler *func(raft.RPC)
}

func (b beating) SetHeartbeatHandler(handle func(raft.RPC)) { *b.handler = handle }

// TestRaftGetsNoHeartbeatAfterStop, and Stop waits for the one that raft handles: its disk is closed next.
func TestRaftGetsNoHeartbeatAfterStop(t *testing.T) {
	_, inmem := raft.NewInmemTransport("a")
	var beat func(raft.RPC)
	trans := raftwire.New(beating{inmem, &beat}, raftwire.Checks{
		View: func() (raftwire.View, error) { return raftwire.View{Term: 1}, nil }, Refused: func(error) {},
	})
	begun, release := make(chan struct{}), make(chan struct{})
	var handled atomic.Int32
	trans.SetHeartbeatHandler(func(rpc raft.RPC) {
		close(begun)
		<-release
		handled.Add(1)
		rpc.Respond(nil, nil)
	})
	answer := make(chan raft.RPCResponse, 2)
	rpc := raft.RPC{Command: &raft.AppendEntriesRequest{Term: 1}, RespChan: answer}
	go beat(rpc)
	<-begun
	go close(release)
	trans.Stop()
	if n := handled.Load(); n != 1 || (<-answer).Error != nil {
		t.Errorf("%d heartbeats are handled when Stop returns, want 1", n)
	}
	beat(rpc) // a second call of the handler would panic
	if err := (<-answer).Error; err == nil {
		t.Error("a heartbeat after Stop is answered as if raft had it")
	}
}

// trickle is the start of a snapshot of 1 GiB, of which 64 KiB come every 10 seconds.
type trickle struct {
	head io.Reader
	read int
}

func (s *trickle) Read(p []byte) (int, error) {
	if n, err := s.head.Read(p); err == nil {
		return n, nil
	}
	if s.read >= 4<<20 { // minutes later; the rest is not needed
		return 0, io.EOF
	}
	time.Sleep(10 * time.Second) // virtual
	n := min(len(p), 64<<10)
	s.read += n
	return n, nil
}

// TestStartOfASnapshotHasItsTime: the next one waits for it. What follows the start has as long as it takes.
func TestStartOfASnapshotHasItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		check := snapshotCheck(t, 3)
		head := append([]byte("keyring-snapshot"), 0, 0, 0, 0, 1<<6, 0, 0, 0)
		if err := check(goodSnapshot(), &trickle{head: bytes.NewReader(append(head, make([]byte, 100)...))}); err == nil || !strings.Contains(err.Error(), "takes more than") {
			t.Errorf("the slow one: %v", err)
		}
		if err := check(goodSnapshot(), &trickle{head: bytes.NewReader(make([]byte, 100))}); err != nil {
			t.Errorf("the host's: %v", err)
		}
	})
}
