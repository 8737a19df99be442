package raftwire

import (
	"fmt"
	"io"
	"sync"
	"time"

	"example.com/keyring/internal/mono"
	"github.com/hashicorp/raft"
)

// sectionTime is how long the start of a snapshot may take to come in, which is the keyring's section: some MiB with
// thousands of keys. The next snapshot waits for it.
const sectionTime = 2 * time.Minute

// Checks is what a Transport checks with. No field may be nil.
type Checks struct {
	// View returns what this server's raft knows, or why raft takes nothing now.
	View func() (View, error)
	// Section checks the start of a snapshot, and returns a reader of all of it.
	Section func(io.Reader) (io.Reader, error)
	// Refused is told of each request and answer that is refused.
	Refused func(error)
}

// Transport is a raft.Transport that splits large requests, and hands to raft what has passed the checks:
// requests of other servers, and the terms in their answers.
type Transport struct {
	splitter
	checks Checks
	passed chan raft.RPC  // what raft gets
	first  sync.Mutex     // held while the start of a snapshot is read
	work   sync.WaitGroup // relay, and the snapshots that it has begun
	done   chan struct{}  // closed by Stop

	heartbeats sync.RWMutex // held, to read, by heartbeats that raft handles
}

// New returns a Transport around inner. Stop ends its goroutines.
func New(inner Inner, c Checks) *Transport {
	t := &Transport{splitter: splitter{inner}, checks: c, passed: make(chan raft.RPC), done: make(chan struct{})}
	t.work.Go(t.relay)
	return t
}

// Stop ends the goroutines of the Transport and waits for them. The connections of other servers have to be
// closed before: a snapshot that still comes in is read to its end. Raft gets no heartbeat after Stop: one would
// make raft write to its disk, which may be closed, and raft panics when it can't. Stop must be called once.
func (t *Transport) Stop() {
	close(t.done)
	t.work.Wait()
	t.heartbeats.Lock() // those that raft handles now end
	defer t.heartbeats.Unlock()
}

// Consumer implements raft.Transport.
func (t *Transport) Consumer() <-chan raft.RPC { return t.passed }

// SetHeartbeatHandler implements raft.Transport. Heartbeats pass by the consumer.
func (t *Transport) SetHeartbeatHandler(handle func(raft.RPC)) {
	if handle == nil {
		t.Inner.SetHeartbeatHandler(nil)
		return
	}
	t.Inner.SetHeartbeatHandler(func(rpc raft.RPC) {
		if err := t.check(rpc.Command); err != nil {
			t.refuse(rpc, err)
			return
		}
		t.heartbeats.RLock()
		defer t.heartbeats.RUnlock()
		select {
		case <-t.done:
			rpc.Respond(nil, raft.ErrTransportShutdown)
		default:
			handle(rpc)
		}
	})
}

// relay hands on the requests of other servers, until done is closed.
func (t *Transport) relay() {
	for {
		select {
		case rpc := <-t.Inner.Consumer():
			if _, ok := rpc.Command.(*raft.InstallSnapshotRequest); ok {
				t.work.Go(func() { t.snapshot(rpc) })
			} else if err := t.check(rpc.Command); err != nil {
				t.refuse(rpc, err)
			} else {
				t.pass(rpc)
			}
		case <-t.done:
			return
		}
	}
}

func (t *Transport) pass(rpc raft.RPC) {
	select {
	case t.passed <- rpc:
	case <-t.done:
	}
}

func (t *Transport) check(command any) error {
	v, err := t.checks.View()
	if err != nil {
		return err
	}
	return v.Check(command)
}

// snapshot hands on a snapshot whose start passes the checks. One that does not pass is read to its end: the
// connection carries nothing after it.
func (t *Transport) snapshot(rpc raft.RPC) {
	err := t.check(rpc.Command)
	if err == nil {
		rpc.Reader, err = t.begin(rpc)
	}
	if err != nil {
		io.Copy(io.Discard, rpc.Reader)
		t.refuse(rpc, err)
		return
	}
	t.pass(rpc)
}

// begin reads the start of a snapshot, and returns a reader of all of it. It checks the request again: the term
// may have changed while another snapshot was read.
func (t *Transport) begin(rpc raft.RPC) (io.Reader, error) {
	t.first.Lock()
	defer t.first.Unlock()
	if err := t.check(rpc.Command); err != nil {
		return rpc.Reader, err
	}
	limited := &inTime{rpc.Reader, mono.Now().Add(sectionTime)}
	all, err := t.checks.Section(limited)
	limited.end = 0
	return all, err
}

// inTime is a reader that fails after end, unless that is zero. A Read that has begun ends by itself: the
// connection has a deadline for each.
type inTime struct {
	io.Reader
	end mono.Time
}

func (u *inTime) Read(p []byte) (int, error) {
	if u.end > 0 && mono.Now() > u.end {
		return 0, badRequest("a snapshot whose start takes more than %v", sectionTime)
	}
	return u.Reader.Read(p)
}

func (t *Transport) refuse(rpc raft.RPC, err error) {
	t.checks.Refused(err)
	rpc.Respond(nil, err)
}

// checkAnswer checks the term of an answer: raft takes over a term that is higher than its own.
func (t *Transport) checkAnswer(term uint64, err error) error {
	if err != nil {
		return err
	}
	v, err := t.checks.View()
	if err != nil {
		return err
	}
	if err := v.checkTerm(term); err != nil {
		t.checks.Refused(err)
		return fmt.Errorf("the answer: %w", err)
	}
	return nil
}

// AppendEntries implements raft.Transport.
func (t *Transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	err := t.splitter.AppendEntries(id, to, q, a)
	return t.checkAnswer(a.Term, err)
}

// RequestVote implements raft.Transport.
func (t *Transport) RequestVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	err := t.Inner.RequestVote(id, to, q, a)
	return t.checkAnswer(a.Term, err)
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	err := t.Inner.RequestPreVote(id, to, q, a)
	return t.checkAnswer(a.Term, err)
}

// InstallSnapshot implements raft.Transport.
func (t *Transport) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, data io.Reader) error {
	err := t.Inner.InstallSnapshot(id, to, q, a, data)
	return t.checkAnswer(a.Term, err)
}
