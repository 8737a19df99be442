package main

import (
	"io"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
)

// Each command that needs a leader says that there is none, and which command is for the day on which most servers are gone.
func TestCommandsSayThatThereIsNoLeader(t *testing.T) {
	t.Parallel()
	servers := startServers(t, initialized(t, 3), options{}, nil, "s1", "s2", "s3")
	left := servers["s1"]
	key := left.node.Keyring().Keys()[0].ID.String()
	api := httptest.NewServer(left.handler())
	defer api.Close()
	stop(t, map[raft.ServerID]*server{"s2": servers["s2"], "s3": servers["s3"]})
	delete(servers, "s2")
	delete(servers, "s3")
	left.await(t, func(st status) bool { return st.Leader == "" })
	var all sync.WaitGroup
	for _, args := range []string{
		"put a", "get a", "identity web", "keys rotate", "keys remove " + key, "servers add -addr 127.0.0.1:9 s4", "servers remove s2", "servers token s4",
		"servers withdraw " + strings.Repeat("0", 32), "backup -to " + newIdentity(t).Recipient().String() + " " + filepath.Join(t.TempDir(), "b"),
	} {
		all.Go(func() {
			err := run(t.Context(), append([]string{"-server", api.URL}, strings.Fields(args)...), strings.NewReader("x"), io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), "503") || !sayStatusFirst(err) || exitStatus(err) != 1 {
				t.Errorf("%s: %v", args, err)
			}
		})
	}
	all.Wait()
}

// sayStatusFirst reports whether an error says that this server alone may hear from no leader, before it says how to recover: where
// others have a leader, that makes two clusters.
func sayStatusFirst(err error) bool {
	text := err.Error()
	look, recover := strings.Index(text, "First check with controlplane keys status"), strings.Index(text, "call controlplane recover")
	other, node := strings.Index(text, "Status of another server"), strings.Index(text, "node.Recover")
	return 0 <= look && look < recover && other <= node
}
