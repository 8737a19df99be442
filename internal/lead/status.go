package lead

// What the leader waits for, for Status and WaitReady.

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// Status is what the leader waits for.
type Status struct {
	Pending   map[meta.KeyID]string    // keys that can't be activated yet, and why
	Command   map[raft.ServerID]string // servers that the next command waits for, and why
	FirstKey  map[raft.ServerID]string // servers that the first key waits for, and why, but for those that do not answer
	Nonvoters map[raft.ServerID]string // servers that are to become voters, and why they are not yet
	restored  string                   // what came of the last question about an active key that came with a snapshot

	Create      *local.Failure // why no key can be made, or nil
	Unconfirmed error          // why nothing is sealed after a restore, or nil
}

// noteCreate notes what came of making a key.
func (l *Leader) noteCreate(err error) {
	l.note(func(s *Status) {
		since := mono.Now()
		if s.Create != nil {
			since = s.Create.Since
		}
		if s.Create = nil; err != nil {
			s.Create = &local.Failure{Err: err, Since: since}
		}
	})
}

// Status is what this leader waits for. It waits for nothing on a server that does not lead.
func (l *Leader) Status(ring *meta.Ring) Status {
	l.mu.Lock()
	s := l.waits
	s.Pending, s.Command, s.FirstKey = maps.Clone(s.Pending), maps.Clone(s.Command), maps.Clone(s.FirstKey)
	s.Nonvoters = maps.Clone(s.Nonvoters)
	l.mu.Unlock()
	if l.Unconfirmed(ring) {
		s.Unconfirmed = l.WhyUnconfirmed()
	}
	return s
}

// Unconfirmed reports whether the active key came with a snapshot, and no majority of the voters has said
// since that it holds it. The snapshot may be from another day than their keystores, or of another
// cluster.
func (l *Leader) Unconfirmed(ring *meta.Ring) bool {
	restored, active := l.FSM.LastRestore(), ring.Active()
	return active != nil && restored.Active == active.ID && l.confirmed.Load() != restored.Count
}

// WhyUnconfirmed is why nothing is sealed after a restore.
func (l *Leader) WhyUnconfirmed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.New("a snapshot was restored, and no majority of the voters has confirmed since that it holds the active key" + l.waits.restored)
}

// note changes what the leader is known to wait for.
func (l *Leader) note(change func(*Status)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.waits)
}

// noteCommand notes the servers that the next command waits for; nil is none.
func (l *Leader) noteCommand(behind map[raft.ServerID]string) {
	l.note(func(s *Status) { s.Command = behind })
}

// noteFirstKey notes the servers that the first key waits for; nil is none.
func (l *Leader) noteFirstKey(hindered map[raft.ServerID]string) {
	l.note(func(s *Status) { s.FirstKey = hindered })
}

// NoteNonvoter notes why a server is no voter yet, or that nothing keeps it from being one. It reports whether that is news.
func (l *Leader) NoteNonvoter(server raft.ServerID, why error) (news bool) {
	l.note(func(s *Status) {
		was := s.Nonvoters[server]
		if why == nil {
			news = was != ""
			delete(s.Nonvoters, server)
			return
		}
		if s.Nonvoters == nil {
			s.Nonvoters = map[raft.ServerID]string{}
		}
		s.Nonvoters[server], news = why.Error(), was != why.Error()
	})
	return news
}

// notePending notes why a key can't be activated yet.
func (l *Leader) notePending(id meta.KeyID, why string) {
	l.note(func(s *Status) {
		if s.Pending == nil {
			s.Pending = map[meta.KeyID]string{}
		}
		s.Pending[id] = why
	})
}

// retainPending forgets the keys that no longer wait.
func (l *Leader) retainPending(pends func(meta.KeyID) bool) {
	l.note(func(s *Status) {
		maps.DeleteFunc(s.Pending, func(id meta.KeyID, _ string) bool { return !pends(id) })
	})
}

// NoKeyYet is why there is no active key, as far as this server knows.
func (l *Leader) NoKeyYet(ring *meta.Ring) error {
	var why []string
	waits := l.Status(ring).FirstKey
	for _, s := range slices.Sorted(maps.Keys(waits)) {
		why = append(why, string(s)+": "+waits[s])
	}
	if own := l.Waiting(ring); own != nil && len(why) == 0 {
		why = []string{string(l.ID) + ": " + waitingText(own)}
	}
	if failed := l.Status(ring).Create; failed != nil && len(why) == 0 {
		return fmt.Errorf("there is no active key yet: %w", failed.Err)
	}
	if len(why) == 0 || !plan.BeforeFirstKey(ring) {
		return errors.New("there is no active key yet")
	}
	return fmt.Errorf("there is no active key yet: the first one waits for %s", strings.Join(why, "; "))
}
