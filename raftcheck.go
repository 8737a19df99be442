package keyring

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"example.com/keyring/internal/mono"
	"github.com/hashicorp/raft"
)

// Raft believes what a member sends. Of some of it, it makes a panic, after it has put it into its log, so that
// every later start ends there too: an entry of an unknown type, a configuration that does not decode, a gap
// in the log. Of other things it makes a state from which no election leads: a term near the largest number.
// So what others send is looked at before raft has it, and what does not pass gets an error for an answer.
//
// What a member may do within these checks is what Raft's members do: lead, and have others follow.
const (
	// maxTermStep is how far another server's term may be beyond this one's. Terms grow by one with an
	// election; one that comes near the largest number could never be followed by another.
	maxTermStep = 1 << 20

	// maxFirstTerm bounds the term that a server takes which has none yet.
	maxFirstTerm = 1 << 48

	// maxIndex is far beyond any log.
	maxIndex = 1 << 62

	// maxConfiguration is the most bytes of a raft configuration, which is some thousand servers.
	maxConfiguration = 256 << 10

	// sectionTime is how long the start of a snapshot may take to come in, the keyring's section: some MiB with
	// thousands of keys. The next snapshot waits for it.
	sectionTime = 2 * time.Minute

	// maxRaftText bounds a server's ID, and its address, in what raft sends.
	maxRaftText = 1024
)

// errRaftRequest is matched by what is wrong with a request of raft's.
var errRaftRequest = errors.New("raft request refused")

func badRequest(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errRaftRequest, fmt.Errorf(format, args...))
}

// raftView is what a server knows itself, to hold requests against.
type raftView struct {
	term   uint64
	commit uint64                      // up to here its entries are final
	termAt func(uint64) (uint64, bool) // of the entry with that index, if it is in the log
}

// checkRequest says what is wrong with a request, the data of a snapshot apart.
func (v raftView) checkRequest(command any) error {
	switch q := command.(type) {
	case *raft.AppendEntriesRequest:
		//lint:ignore SA1019 raft reads it of servers that set it
		return errors.Join(v.checkFrom(q.RPCHeader, q.Leader, q.Term), v.checkEntries(q))
	case *raft.RequestVoteRequest:
		//lint:ignore SA1019 raft reads it of servers that set it
		return v.checkFrom(q.RPCHeader, q.Candidate, q.Term)
	case *raft.RequestPreVoteRequest:
		return v.checkFrom(q.RPCHeader, nil, q.Term)
	case *raft.TimeoutNowRequest:
		return v.checkFrom(q.RPCHeader, nil, 0)
	case *raft.InstallSnapshotRequest:
		if q.Term < v.term { // raft would not take it either, once it is read
			return badRequest("a snapshot in term %d, and the term here is %d", q.Term, v.term)
		}
		return errors.Join(v.checkFrom(q.RPCHeader, q.Leader, q.Term), checkSnapshot(q))
	}
	return badRequest("%T", command)
}

// checkFrom looks at who sends a request, by its own words, and at its term.
func (v raftView) checkFrom(h raft.RPCHeader, addr []byte, term uint64) error {
	if len(h.ID) > maxRaftText || len(h.Addr) > maxRaftText || len(addr) > maxRaftText {
		return badRequest("from an ID or address of more than %d bytes", maxRaftText)
	}
	return v.checkTerm(term)
}

func (v raftView) checkTerm(term uint64) error {
	if most := v.term + maxTermStep; v.term > 0 && term > most || v.term == 0 && term > maxFirstTerm {
		return badRequest("term %d, and the term here is %d", term, v.term)
	}
	return nil
}

// checkEntries requires that the entries follow one another, are of this term or earlier ones, are of the kinds
// that raft has, and take the place of none that is final.
func (v raftView) checkEntries(q *raft.AppendEntriesRequest) error {
	if q.PrevLogEntry > maxIndex || q.PrevLogTerm > q.Term {
		return badRequest("entries after %d of term %d in term %d", q.PrevLogEntry, q.PrevLogTerm, q.Term)
	}
	last := q.PrevLogTerm
	for i, e := range q.Entries {
		if e == nil {
			return badRequest("an entry that is none")
		}
		if want := q.PrevLogEntry + 1 + uint64(i); e.Index != want {
			return badRequest("entry %d where %d follows", e.Index, want)
		}
		if e.Term < max(last, 1) || e.Term > q.Term {
			return badRequest("entry %d of term %d after one of term %d in term %d", e.Index, e.Term, last, q.Term)
		}
		last = e.Term
		if term, ok := v.final(e.Index); ok && term != e.Term {
			return badRequest("entry %d of term %d, which is final here with term %d", e.Index, e.Term, term)
		}
		if err := checkEntry(e); err != nil {
			return fmt.Errorf("entry %d: %w", e.Index, err)
		}
	}
	return nil
}

// final returns the term of an entry that is committed, if it is still in the log.
func (v raftView) final(index uint64) (uint64, bool) {
	if index > v.commit {
		return 0, false
	}
	return v.termAt(index)
}

func checkEntry(e *raft.Log) error {
	switch e.Type {
	case raft.LogCommand, raft.LogNoop, raft.LogBarrier:
		return nil
	case raft.LogConfiguration:
		_, err := decodeConfiguration(e.Data)
		return err
	}
	return badRequest("of type %d", e.Type) // also those with which raft changed its members before 1.0
}

func checkSnapshot(q *raft.InstallSnapshotRequest) error {
	switch {
	case q.SnapshotVersion != raft.SnapshotVersionMax:
		return badRequest("a snapshot of version %d", q.SnapshotVersion)
	case q.LastLogIndex == 0 || q.LastLogIndex > maxIndex || q.ConfigurationIndex > q.LastLogIndex:
		return badRequest("a snapshot of entry %d with the configuration of %d", q.LastLogIndex, q.ConfigurationIndex)
	case q.LastLogTerm == 0 || q.LastLogTerm > q.Term:
		return badRequest("a snapshot of term %d in term %d", q.LastLogTerm, q.Term)
	case q.Size < 0:
		return badRequest("a snapshot of %d bytes", q.Size)
	}
	_, err := decodeConfiguration(q.Configuration)
	return err
}

// decodeConfiguration decodes a raft configuration with which raft can work: it has a voter, and nobody twice.
// raft's own decoder says with a panic that the bytes are none; it has no state that this could leave behind.
func decodeConfiguration(b []byte) (c raft.Configuration, err error) {
	if len(b) > maxConfiguration {
		return c, badRequest("a configuration of %d bytes, at most %d", len(b), maxConfiguration)
	}
	defer func() {
		if recover() != nil {
			c, err = raft.Configuration{}, badRequest("a configuration that does not decode")
		}
	}()
	c = raft.DecodeConfiguration(b)
	if err := checkConfiguration(c); err != nil {
		return c, badRequest("%w", err)
	}
	return c, nil
}

// checkConfiguration says why raft could not work with a configuration, or nil.
func checkConfiguration(c raft.Configuration) error {
	ids, addrs, voters := map[raft.ServerID]bool{}, map[raft.ServerAddress]bool{}, 0
	for _, s := range c.Servers {
		if s.ID == "" || s.Address == "" || len(s.ID) > maxRaftText || len(s.Address) > maxRaftText {
			return fmt.Errorf("a configuration with an ID of %d and an address of %d bytes", len(s.ID), len(s.Address))
		}
		if s.Suffrage < raft.Voter || s.Suffrage > raft.Staging || ids[s.ID] || addrs[s.Address] {
			return fmt.Errorf("a configuration with a server twice, or of suffrage %d", s.Suffrage)
		}
		ids[s.ID], addrs[s.Address] = true, true
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	if voters == 0 {
		return errors.New("a configuration without a voter")
	}
	return nil
}

// checkedTransport is a transport of which raft gets what has passed the checks: requests of others, and
// the terms in their answers.
type checkedTransport struct {
	raftTransport
	view    func() (raftView, bool)            // false before raft is there
	section func(io.Reader) (io.Reader, error) // looks at the start of a snapshot, and returns all of it
	refused func(error)                        // is told of each refusal
	passed  chan raft.RPC                      // what raft gets
	one     sync.Mutex                         // held while the start of a snapshot is read
	work    sync.WaitGroup                     // relay, and the snapshots that it has begun
	done    <-chan struct{}                    // closed at the end
}

// Consumer implements raft.Transport.
func (t *checkedTransport) Consumer() <-chan raft.RPC { return t.passed }

// SetHeartbeatHandler implements raft.Transport. Heartbeats pass by the consumer.
func (t *checkedTransport) SetHeartbeatHandler(handle func(raft.RPC)) {
	if handle == nil {
		t.wire.SetHeartbeatHandler(nil)
		return
	}
	t.wire.SetHeartbeatHandler(func(rpc raft.RPC) {
		if err := t.check(rpc.Command); err != nil {
			t.refuse(rpc, err)
			return
		}
		handle(rpc)
	})
}

// relay hands on what others ask, until done is closed.
func (t *checkedTransport) relay() {
	for {
		select {
		case rpc := <-t.wire.Consumer():
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

func (t *checkedTransport) pass(rpc raft.RPC) {
	select {
	case t.passed <- rpc:
	case <-t.done:
	}
}

func (t *checkedTransport) check(command any) error {
	v, ok := t.view()
	if !ok {
		return errors.New("raft does not run here yet")
	}
	return v.checkRequest(command)
}

// snapshot hands on a snapshot that begins as one of this cluster does. What is left of another one is read:
// the connection has nothing after it.
func (t *checkedTransport) snapshot(rpc raft.RPC) {
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

// begin reads the start of a snapshot, and returns a reader of all of it. The term may have changed while another
// one was read.
func (t *checkedTransport) begin(rpc raft.RPC) (io.Reader, error) {
	t.one.Lock()
	defer t.one.Unlock()
	if err := t.check(rpc.Command); err != nil {
		return rpc.Reader, err
	}
	limited := &inTime{rpc.Reader, mono.Now().Add(sectionTime)}
	all, err := t.section(limited)
	limited.end = 0
	return all, err
}

// inTime is a reader that is of no use after a moment, unless that is zero. A Read that has begun ends by itself:
// the connection has a deadline for each.
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

func (t *checkedTransport) refuse(rpc raft.RPC, err error) {
	t.refused(err)
	rpc.Respond(nil, err)
}

// answered checks the term of an answer: raft takes one that is higher than its own.
func (t *checkedTransport) answered(term uint64, err error) error {
	if err != nil {
		return err
	}
	v, ok := t.view()
	if !ok {
		return errors.New("raft does not run here yet")
	}
	if err := v.checkTerm(term); err != nil {
		t.refused(err)
		return fmt.Errorf("the answer: %w", err)
	}
	return nil
}

// AppendEntries implements raft.Transport.
func (t *checkedTransport) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	err := t.raftTransport.AppendEntries(id, to, q, a)
	return t.answered(a.Term, err)
}

// RequestVote implements raft.Transport.
func (t *checkedTransport) RequestVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	err := t.wire.RequestVote(id, to, q, a)
	return t.answered(a.Term, err)
}

// RequestPreVote implements raft.WithPreVote.
func (t *checkedTransport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	err := t.wire.RequestPreVote(id, to, q, a)
	return t.answered(a.Term, err)
}

// InstallSnapshot implements raft.Transport.
func (t *checkedTransport) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, data io.Reader) error {
	err := t.wire.InstallSnapshot(id, to, q, a, data)
	return t.answered(a.Term, err)
}

// raftView is what this server's raft knows. Before raft is there nobody is admitted who could ask.
func (w *network) raftView() (raftView, bool) {
	if !w.ready() {
		return raftView{}, false
	}
	return raftView{
		term: w.node.raft.CurrentTerm(), commit: w.node.raft.CommitIndex(),
		termAt: func(index uint64) (uint64, bool) {
			var e raft.Log
			err := w.node.store.GetLog(index, &e)
			return e.Term, err == nil
		},
	}, true
}

// checkSection reads the keyring's section of a snapshot, if it has one, and returns a reader of all of it: one
// that is damaged, or of a newer build, would take the place of a good one on disk before raft finds out.
func (w *network) checkSection(r io.Reader) (io.Reader, error) {
	raw, err := readRaw(r)
	if err != nil {
		return r, err
	}
	if bytes.HasPrefix(raw, []byte(magic)) {
		if _, err := ringOf(raw, w.node.keys.fsm.build); err != nil {
			return r, err
		}
	}
	return io.MultiReader(bytes.NewReader(raw), r), nil
}
