package local

// Which version of key files this server writes.

import (
	"context"
	"fmt"
	"slices"

	"example.com/keyring/internal/peer"
)

// AskFiles asks every server which key files its build reads, and has this server write the newest that all of them read. Files
// never travel. But servers are upgraded one after the other, and one may be taken back to the build before: until all run
// this build, each can read what it has written. One that is taken back later leaves its files as they are.
//
// The error says who reads no version but an older one, or has not answered.
func (s *Server) AskFiles(ctx context.Context) error {
	asked := ServerIDs(s.Raft)
	answers := peer.All(ctx, asked, s.readsFiles, nil)
	version, who := lowestFiles(asked, answers)
	if !slices.Contains(asked, string(s.ID)) || !slices.Equal(asked, ServerIDs(s.Raft)) {
		return fmt.Errorf("the raft configuration has changed, or this server is not in it: %q", asked)
	}
	if version < 1 {
		return fmt.Errorf("server %s %s", who, NoAnswer)
	}
	s.Store.UseFiles(version)
	s.FSM.Notify()
	if version < s.FSM.Build().ReadsFiles() {
		return fmt.Errorf("server %s reads version %d of key files", who, version)
	}
	return nil
}

// readsFiles asks one server, which may be this one. A build that does not know the question reads version 1.
func (s *Server) readsFiles(ctx context.Context, server string) (int, error) {
	if server == string(s.ID) {
		return s.FSM.Build().ReadsFiles(), nil
	}
	a, err := s.Peers.State(ctx, server, peer.StateRequest{Files: true})
	if peer.Refused(err, peer.Unsupported) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	return max(1, a.Files), nil
}

// lowestFiles returns the newest version of key files that all servers read, and the server for which it is no newer one:
// zero for one that has not answered.
func lowestFiles(servers []string, answers map[string]int) (version int, who string) {
	for i, server := range servers {
		if v := answers[server]; i == 0 || v < version {
			version, who = v, server
		}
	}
	return version, who
}
