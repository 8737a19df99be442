package admin_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"

	"example.com/keyring"
	"example.com/keyring/admin"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// A host with a raft of its own mounts the Handler beside its other handlers, and its CLI passes its
// arguments on. Here one server has its raft in memory, and operators have a password; yours may have
// certificates.
func Example() {
	keys, closeAll, err := openKeyring()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer closeAll()

	h, err := admin.New(admin.ForKeyring(keys, keyring.AddServerOptions{}), admin.Config{
		Authorize: func(r *http.Request) (string, error) {
			if name, password, _ := r.BasicAuth(); name == "alice" && password == "correct horse" {
				return name, nil
			}
			return "", admin.Unauthenticated(`Basic realm="kvd"`) // a browser asks for the password
		},
		Program: admin.Program{Name: "kvd keyring"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux() // which has the host's own API too
	mux.Handle("/keyring/", http.StripPrefix("/keyring", h))
	server := httptest.NewServer(mux)
	defer server.Close()
	url := server.URL + "/keyring"

	// kvd keyring -server URL keys rotate
	command := []string{"-server", url, "keys", "rotate"}
	err = admin.Command(context.Background(), command, admin.CommandOptions{
		HTTP: &http.Client{Transport: alice{}}, Stdout: io.Discard, // it prints the ID of the key
	})
	fmt.Println("alice:", admin.ExitStatus(err), err)

	err = admin.Command(context.Background(), command, admin.CommandOptions{})
	fmt.Println("another:", admin.ExitStatus(err), err)
	fmt.Println(len(keys.Keys()), "keys")
	// Output:
	// alice: 0 <nil>
	// another: 1 401 Unauthorized: not allowed: who are you?
	// 2 keys
}

// A Node is a Server. Authorize decides about each request. The name that it returns for the sender is the
// actor in Config.Audit.
func ExampleNew() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "admin")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	n, err := node.Start(ctx, node.Config{Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer n.Close()

	h, err := admin.New(n, admin.Config{
		Authorize: func(r *http.Request) (string, error) {
			if r.Header.Get("Authorization") == "Bearer of alice" { // or by the client's certificate, in r.TLS
				return "alice", nil
			}
			return "", admin.Unauthenticated("Bearer")
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux()
	mux.Handle("/keyring/", http.StripPrefix("/keyring", h))

	for _, token := range []string{"Bearer of alice", ""} {
		r, w := httptest.NewRequest("GET", "/keyring/v1/status", nil), httptest.NewRecorder()
		r.Header.Set("Authorization", token)
		mux.ServeHTTP(w, r)
		var st admin.Status
		err := json.Unmarshal(w.Body.Bytes(), &st)
		fmt.Println(w.Code, st.ID, err)
	}
	// Output:
	// 200 server <nil>
	// 401  <nil>
}

// alice adds who she is to each request, also after a redirect to another server.
type alice struct{}

func (alice) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth("alice", "correct horse")
	return http.DefaultTransport.RoundTrip(r)
}

// openKeyring opens the keyring of a raft that has one server, and waits for the first key.
func openKeyring() (keys *keyring.Keyring, closeAll func(), err error) {
	dir, err := os.MkdirTemp("", "keyring")
	if err != nil {
		return nil, nil, err
	}
	conf, fsm, store := raft.DefaultConfig(), keyring.NewFSM(), raft.NewInmemStore()
	conf.LocalID, conf.Logger = "s1", hclog.NewNullLogger()
	addr, transport := raft.NewInmemTransport("s1")
	r, err := raft.NewRaft(conf, fsm, store, store, raft.NewInmemSnapshotStore(), transport)
	if err != nil {
		return nil, nil, err
	}
	err = r.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: addr}}}).Error()
	if err != nil {
		return nil, nil, err
	}
	keys, err = keyring.Open(context.Background(), keyring.Config{
		Dir: dir, ID: "s1", Raft: r, FSM: fsm, KEKs: []keyring.KEK{keyring.InlineKEK()},
	})
	if err == nil {
		err = keys.WaitReady(context.Background())
	}
	return keys, func() { keys.Close(); r.Shutdown().Error(); os.RemoveAll(dir) }, err
}
