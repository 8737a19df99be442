package keyringtest

// Gates: FSMs of hosts that wait.

import (
	"sync"

	"github.com/hashicorp/raft"
)

// Gates make hosts' FSMs that can be stopped.
type Gates struct {
	mu      sync.Mutex // guards below
	shutFor map[raft.ServerID]chan struct{}
}

// App is Options.App of a Cluster.
func (g *Gates) App(s *Server) raft.FSM { return &gatedApp{&App{}, g, s.ID} }

// Shut stops a server's FSM at its next entry, until open is called.
func (g *Gates) Shut(id raft.ServerID) (open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shutFor == nil {
		g.shutFor = map[raft.ServerID]chan struct{}{}
	}
	gate := make(chan struct{})
	g.shutFor[id] = gate
	return sync.OnceFunc(func() {
		g.mu.Lock()
		delete(g.shutFor, id)
		g.mu.Unlock()
		close(gate)
	})
}

// gatedApp is an App that waits before an entry while its gate is shut.
type gatedApp struct {
	*App
	gates *Gates
	id    raft.ServerID
}

// Apply implements raft.FSM.
func (a *gatedApp) Apply(l *raft.Log) any {
	a.gates.mu.Lock()
	gate := a.gates.shutFor[a.id]
	a.gates.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return a.App.Apply(l)
}
