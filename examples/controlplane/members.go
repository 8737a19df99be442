package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"net/url"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// serverRequest asks for a server to be added, or for a new address of one. An empty address is that in
// the cluster.json of the server that is asked.
type serverRequest struct {
	ID   raft.ServerID `json:"id"`
	Addr string        `json:"addr,omitempty"`
}

// addServer admits a server. The node asks the leader by itself, as in removeServer; both do no more twice
// than once.
func (s *server) addServer(r *http.Request) (any, error) {
	var in serverRequest
	if err := read(r, &in); err != nil {
		return nil, err
	}
	if in.Addr == "" {
		in.Addr = s.cluster.Servers[in.ID].Raft
	}
	if in.Addr == "" {
		return nil, badRequest{fmt.Errorf("cluster.json has no server %q: an address is needed", in.ID)}
	}
	ctx := keyring.WithActor(r.Context(), actor(r))
	return in, s.node.AddServer(ctx, in.ID, in.Addr)
}

// removeServer takes a server out, with ?force also if a key is then held by too few.
func (s *server) removeServer(r *http.Request) (any, error) {
	id := raft.ServerID(r.PathValue("id"))
	o := keyring.RemoveServerOptions{Force: r.URL.Query().Has("force")}
	return serverRequest{ID: id}, s.node.RemoveServer(keyring.WithActor(r.Context(), actor(r)), id, o)
}

func (c cli) addServer(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("servers add", flag.ContinueOnError)
	addr := fs.String("addr", "", "")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	in := serverRequest{raft.ServerID(args[0]), *addr}
	if err := c.call(ctx, http.MethodPost, "/v1/servers", in, &in); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s may join, and is expected at %s\n", in.ID, in.Addr)
	return nil
}

func (c cli) removeServer(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("servers remove", flag.ContinueOnError)
	force := fs.Bool("force", false, "")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	path := "/v1/servers/" + url.PathEscape(args[0])
	if *force {
		path += "?force"
	}
	var out serverRequest
	if err := c.call(ctx, http.MethodDelete, path, nil, &out); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s is removed; delete its directory\n", out.ID)
	return nil
}
