package keyringtest

// App: a host's FSM, in its four forms.

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/hashicorp/raft"
)

// App is a host's FSM: the list of what was applied, as text with a line each.
type App struct {
	Mu        sync.Mutex // guards below
	Lines     []string
	Batches   []string // the lines of each batch
	Configs   []raft.Configuration
	Persisted error // what Persist of its snapshots ends with
	Restored  error // what Restore ends with
	Released  int
}

// ApplyLocked is Apply for a caller that holds Mu.
func (a *App) ApplyLocked(l *raft.Log) any {
	if l.Type != raft.LogCommand {
		return nil
	}
	a.Lines = append(a.Lines, string(l.Data))
	return fmt.Sprintf("%d: %s", l.Index, l.Data)
}

// Apply implements raft.FSM.
func (a *App) Apply(l *raft.Log) any {
	a.Mu.Lock()
	defer a.Mu.Unlock()
	return a.ApplyLocked(l)
}

// Text is all lines.
func (a *App) Text() string {
	a.Mu.Lock()
	defer a.Mu.Unlock()
	return strings.Join(a.Lines, "\n")
}

// Snapshot implements raft.FSM.
func (a *App) Snapshot() (raft.FSMSnapshot, error) { return appSnapshot{a, a.Text()}, nil }

// Restore implements raft.FSM.
func (a *App) Restore(rc io.ReadCloser) error {
	b, err := io.ReadAll(rc)
	if err := errors.Join(err, a.Restored, rc.Close()); err != nil {
		return err
	}
	a.Mu.Lock()
	defer a.Mu.Unlock()
	a.Lines = nil
	if len(b) > 0 {
		a.Lines = strings.Split(string(b), "\n")
	}
	return nil
}

type appSnapshot struct {
	app  *App
	text string
}

func (s appSnapshot) Persist(sink raft.SnapshotSink) error {
	_, err := io.WriteString(sink, s.text)
	if err := errors.Join(err, s.app.Persisted); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s appSnapshot) Release() { s.app.Released++ }

// BatchingApp is an App that is a raft.BatchingFSM.
type BatchingApp struct{ *App }

// StoringApp is an App that is a raft.ConfigurationStore.
type StoringApp struct{ *App }

// BothApp is an App that is both.
type BothApp struct {
	BatchingApp
	Store StoringApp
}

// ApplyBatch implements raft.BatchingFSM.
func (b BatchingApp) ApplyBatch(logs []*raft.Log) []any {
	b.Mu.Lock()
	defer b.Mu.Unlock()
	var responses []any
	var lines []string
	for _, l := range logs {
		if l.Type == raft.LogConfiguration { // raft gives it to ApplyBatch, and not to StoreConfiguration
			b.Configs = append(b.Configs, raft.DecodeConfiguration(l.Data))
		}
		responses = append(responses, b.ApplyLocked(l))
		lines = append(lines, string(l.Data))
	}
	b.Batches = append(b.Batches, strings.Join(lines, ","))
	return responses
}

// StoreConfiguration implements raft.ConfigurationStore.
func (s StoringApp) StoreConfiguration(_ uint64, c raft.Configuration) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	s.Configs = append(s.Configs, c)
}

// StoreConfiguration implements raft.ConfigurationStore.
func (b BothApp) StoreConfiguration(i uint64, c raft.Configuration) { b.Store.StoreConfiguration(i, c) }

// AppForms are the four things that a host's FSM can be.
var AppForms = []struct {
	Name            string
	Batches, Stores bool // it is a raft.BatchingFSM, or a raft.ConfigurationStore
	Of              func(*App) raft.FSM
}{
	{"plain", false, false, func(a *App) raft.FSM { return a }},
	{"batching", true, false, func(a *App) raft.FSM { return BatchingApp{a} }},
	{"storing", false, true, func(a *App) raft.FSM { return StoringApp{a} }},
	{"both", true, true, func(a *App) raft.FSM { return BothApp{BatchingApp{a}, StoringApp{a}} }},
}
