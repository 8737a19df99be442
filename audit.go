package keyring

// Config.Audit, and the goroutine that calls it.

import (
	"context"
	"strings"
	"sync"
	"time"

	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// Event is one step in the life of a key, or a backup, for Config.Audit.
type Event struct {
	Index uint64    // of raft's log, the same on every server
	Time  time.Time // when the leader put it there
	Step  Step
	Key   KeyID  // zero for a backup
	Actor string // who asked, by WithActor; empty if the keyring acted of its own accord
}

// Step says what an Event is.
type Step = meta.StepKind

// The steps.
const (
	StepAdded          = meta.StepAdded          // the key is known to all, and not active yet
	StepAdopted        = meta.StepAdopted        // a key of which only the file was there; see Adopt
	StepTokensAdmitted = meta.StepTokensAdmitted // the tokens of a key that was adopted for data alone
	StepCompromised    = meta.StepCompromised    // all others are revoked and removed once the key is active
	StepActivated      = meta.StepActivated
	StepRetired        = meta.StepRetired
	StepRevoked        = meta.StepRevoked     // its tokens verify no longer
	StepRekeying       = meta.StepRekeying    // its data begins to move
	StepRemoveAsked    = meta.StepRemoveAsked // once its data has moved
	StepDeprecated     = meta.StepDeprecated  // its data has moved
	StepRemoved        = meta.StepRemoved
	StepBackup         = meta.StepBackup // was made
)

// WithActor names who asks for what is called with the context: an operator or a service. The name
// goes into raft's log with the command, from a follower too, and from there to Config.Audit. It is
// taken as it is, cut after 255 bytes. A call that changes nothing in raft ignores it.
func WithActor(ctx context.Context, name string) context.Context {
	name = strings.ToValidUTF8(name[:min(len(name), meta.MaxActor)], "")
	return context.WithValue(ctx, actorKey{}, name)
}

type actorKey struct{}

// Actor is the name that WithActor has put into the context, or nothing.
func Actor(ctx context.Context) string {
	name, _ := ctx.Value(actorKey{}).(string)
	return name
}

// events are those that Config.Audit has yet to be told of.
type events struct {
	mu      sync.Mutex // guards below
	waiting []Event
	some    chan struct{} // has one while there are any
}

func newEvents() *events { return &events{some: make(chan struct{}, 1)} }

// add notes what a log entry has done.
func (e *events) add(l *raft.Log, by string, steps []meta.Step) {
	if len(steps) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range steps {
		e.waiting = append(e.waiting, Event{l.Index, l.AppendedAt.UTC(), s.Kind, s.Key, by})
	}
	select {
	case e.some <- struct{}{}:
	default:
	}
}

func (e *events) take() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	taken := e.waiting
	e.waiting = nil
	return taken
}

// tell hands the events to Config.Audit. When ctx has ended it ends as soon as all are told.
func (e *events) tell(ctx context.Context, audit func(Event)) {
	for open := true; open; {
		select {
		case <-e.some:
		case <-ctx.Done():
			open = false
		}
		for _, event := range e.take() {
			audit(event)
		}
	}
}
