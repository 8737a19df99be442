package keyring

import (
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// MaxCommand is the most bytes that Node.Apply takes.
const MaxCommand = 4 << 20

// commandTooLong is how many bytes it has. It matches ErrTooLong.
type commandTooLong int

func (n commandTooLong) Error() string {
	return fmt.Sprintf("apply: a command of %d bytes, at most %d are taken", int(n), MaxCommand)
}

func (commandTooLong) Is(target error) bool { return target == ErrTooLong }

// batchLimit is how many bytes of entries go in one request of raft's. Raft itself bounds only
// how many entries do, and the other side takes no frame beyond peer.MaxFrame.
const batchLimit = 1 << 20

// wire is what a raft.NetworkTransport is to raft. Raft asks for the last two by assertion.
type wire interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// raftTransport splits the requests that carry many bytes.
type raftTransport struct {
	wire
	answers *turnstile
}

// turnstile holds back what a follower has answered while raft notes another address of it: at v1.7.3
// its replication reads there without the lock, once an answer has come (updateLastAppended).
type turnstile struct {
	mu   sync.Mutex // guards below
	shut map[raft.ServerID]chan struct{}
}

// hold shuts the turnstile for a follower, until it is opened.
func (t *turnstile) hold(id raft.ServerID) (open func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut == nil {
		t.shut = map[raft.ServerID]chan struct{}{}
	}
	opened := make(chan struct{})
	t.shut[id] = opened
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.shut, id)
		close(opened)
	}
}

func (t *turnstile) pass(id raft.ServerID) {
	t.mu.Lock()
	opened := t.shut[id]
	t.mu.Unlock()
	if opened != nil {
		<-opened
	}
}

// AppendEntries implements raft.Transport. A request of more than batchLimit bytes goes as
// several, in order, up to the first that is not answered with success. Those before it stay
// in the follower's log, where raft finds them when it tries again.
func (t raftTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	rest := args.Entries
	part := *args
	for {
		n := batch(rest)
		part.Entries, rest = rest[:n], rest[n:]
		part.LeaderCommitIndex = args.LeaderCommitIndex
		if len(rest) > 0 {
			part.LeaderCommitIndex = min(args.LeaderCommitIndex, part.Entries[n-1].Index)
		}
		*resp = raft.AppendEntriesResponse{}
		err := t.wire.AppendEntries(id, target, &part, resp)
		if len(part.Entries) > 0 {
			t.answers.pass(id)
		}
		if err != nil || !resp.Success || len(rest) == 0 {
			return err
		}
		last := part.Entries[n-1]
		part.PrevLogEntry, part.PrevLogTerm = last.Index, last.Term
	}
}

// batch returns how many of the entries go together: as many as fit batchLimit, and at least
// one if there are any.
func batch(entries []*raft.Log) int {
	size := 0
	for i, e := range entries {
		size += len(e.Data) + len(e.Extensions)
		if i > 0 && size > batchLimit {
			return i
		}
	}
	return len(entries)
}
