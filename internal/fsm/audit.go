package fsm

// What was applied, for who audits it.

import (
	"context"
	"strings"
	"sync"
	"time"

	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// WithActor names who asks for what is called with the context. It is cut after meta.MaxActor bytes.
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

// Event is one step in the life of a key, or a backup, as raft's log has it.
type Event struct {
	Index uint64    // of raft's log
	Time  time.Time // when the leader put it there
	Step  meta.StepKind
	Key   meta.KeyID // zero for a backup
	Actor string     // who asked; empty if the keyring acted of its own accord
}

// Events are those that Config.Audit has yet to be told of.
type Events struct {
	mu      sync.Mutex // guards below
	waiting []Event
	some    chan struct{} // has one while there are any
}

func newEvents() *Events { return &Events{some: make(chan struct{}, 1)} }

// add notes what a log entry has done.
func (e *Events) add(l *raft.Log, by string, steps []meta.Step) {
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

func (e *Events) take() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	taken := e.waiting
	e.waiting = nil
	return taken
}

// Tell hands the events to Config.Audit. When ctx has ended it ends as soon as all are told.
func (e *Events) Tell(ctx context.Context, audit func(Event)) {
	for open := true; open; {
		select {
		case <-e.some:
		case <-ctx.Done():
			open = false
		}
		for _, taken := range e.take() {
			audit(taken)
		}
	}
}
