package keyringtest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/hashicorp/raft"
)

// Event is one point at which a server reaches out of its process: an operation of its
// keystore's disk, of its raft log, or a request to a peer. A test can fail it or kill the
// server there.
type Event struct {
	Server *Server
	Kind   string // "disk", "log" before and "logged" after raft's log was written, "call" and "called", "answer"
	What   string
	To     raft.ServerID // of a call, and who asked for an answer
}

// String is one line for people.
func (e Event) String() string { return fmt.Sprintf("%s %s %s", e.Server.ID, e.Kind, e.What) }

// Reply is what becomes of an event. The zero Reply lets it pass.
type Reply struct {
	Err  error
	Hang bool   // of a call: it is silent until its deadline
	Data []byte // of a call: what the peer answers, in place of its own answer
}

var errDown = errors.New("connection refused")

// OnEvent has hook decide about every event from now on; nil lets all pass. It is called
// from the goroutines the events are in, with no lock held.
func (c *Cluster) OnEvent(hook func(Event) Reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hook = hook
}

func (c *Cluster) event(e Event) Reply {
	c.mu.Lock()
	hook := c.hook
	c.mu.Unlock()
	if e.Server.isDead() {
		return Reply{Err: ErrCrashed}
	}
	if hook == nil {
		return Reply{}
	}
	r := hook(e)
	if e.Server.isDead() { // the hook killed it
		return Reply{Err: ErrCrashed}
	}
	return r
}

// eventStore is raft's log and stable store, with events.
type eventStore struct {
	*raft.InmemStore
	server *Server
	life   chan struct{}
}

// FirstIndex implements raft.LogStore. A leader of raft's asks for it every 10 seconds, to tell the age of its log as
// a metric: in virtual months that would be most of what happens, and nobody reads it. It is not answered before the
// server is stopped.
func (l *eventStore) FirstIndex() (uint64, error) {
	var callers [8]uintptr
	frames := runtime.CallersFrames(callers[:runtime.Callers(2, callers[:])])
	for more := true; more; {
		var f runtime.Frame
		if f, more = frames.Next(); strings.HasSuffix(f.Function, "raft.emitLogStoreMetrics") {
			<-l.life
		}
	}
	return l.InmemStore.FirstIndex()
}

// StoreLogs implements raft.LogStore.
func (l *eventStore) StoreLogs(logs []*raft.Log) error {
	what := fmt.Sprintf("%d entries from %d", len(logs), logs[0].Index)
	if err := l.server.cluster.event(Event{Server: l.server, Kind: "log", What: what}).Err; err != nil {
		return err
	}
	if err := l.InmemStore.StoreLogs(logs); err != nil {
		return err
	}
	return l.server.cluster.event(Event{Server: l.server, Kind: "logged", What: what}).Err
}

// StoreLog implements raft.LogStore.
func (l *eventStore) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// link is a server's Transport.
type link struct {
	cluster *Cluster
	from    *Server
}

// Call implements keyring.Transport: events before the request leaves, at the peer before
// it answers, and after the answer has come back.
func (l link) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	r := l.cluster.event(Event{Server: l.from, Kind: "call", What: string(request), To: to})
	if r.Hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r.Err != nil || r.Data != nil {
		return r.Data, r.Err
	}
	peer, keys := l.cluster.peer(to)
	if l.cluster.isCut(l.from.ID, to) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if keys == nil {
		return nil, errDown
	}
	if r := l.cluster.event(Event{Server: peer, Kind: "answer", What: string(request), To: l.from.ID}); r.Err != nil {
		return nil, errDown
	}
	answer, err := keys.ServePeer(ctx, l.from.ID, request)
	if err != nil || peer.isDead() {
		return nil, errors.Join(errDown, err)
	}
	if r := l.cluster.event(Event{Server: l.from, Kind: "called", What: string(request), To: to}); r.Err != nil {
		return nil, r.Err
	}
	return answer, nil
}
