package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// serverRequest asks for a server to be added, or for a new address of one. An empty address is that in
// the cluster.json of the server that is asked.
type serverRequest struct {
	ID   raft.ServerID `json:"id"`
	Addr string        `json:"addr,omitempty"`
}

// addServer admits a server. The node asks the leader by itself, as in removeServer; both may be
// done twice.
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
	if err := cmp.Or(checkID(in.ID), checkAddr(in.Addr)); err != nil {
		return nil, err
	}
	err := s.node.AddServer(keyring.WithActor(r.Context(), actor(r)), in.ID, in.Addr)
	return in, notAdded(err, in, s.servers(r.Context()))
}

// removeServer takes a server out, with ?force also if a key is then held by too few.
func (s *server) removeServer(r *http.Request) (any, error) {
	id := raft.ServerID(r.PathValue("id"))
	force, err := flagOf(r, "force")
	if err != nil {
		return nil, err
	}
	o := keyring.RemoveServerOptions{Force: force}
	err = s.node.RemoveServer(keyring.WithActor(r.Context(), actor(r)), id, o)
	return serverRequest{ID: id}, notRemoved(err, id, s.servers(r.Context()))
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
	fmt.Fprintf(c.out, "%s may join, and is expected at %s\n", line(string(in.ID)), line(in.Addr))
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
	fmt.Fprintf(c.out, "%s is removed; delete its directory\n", line(string(out.ID)))
	return nil
}

// tokenRequest asks for a join token, and has it in the answer.
type tokenRequest struct {
	ID    raft.ServerID `json:"id"`
	TTL   time.Duration `json:"ttl,omitempty"`
	Token string        `json:"token,omitempty"`
}

// joinToken makes a token with which a server may join: a secret.
func (s *server) joinToken(r *http.Request) (any, error) {
	var in tokenRequest
	if err := read(r, &in); err != nil {
		return nil, err
	}
	err := cmp.Or(checkID(in.ID), checkTTL(in.TTL))
	if err != nil {
		return nil, err
	}
	in.Token, err = s.node.JoinToken(in.ID, in.TTL)
	return in, err
}

// joinTokens lists those that have not ended, without their secrets.
func (s *server) joinTokens(*http.Request) (any, error) { return s.node.JoinTokens(), nil }

func (s *server) withdrawToken(r *http.Request) (any, error) {
	id := r.PathValue("id")
	if err := checkTokenID(id); err != nil {
		return nil, err
	}
	err := s.node.WithdrawJoinToken(keyring.WithActor(r.Context(), actor(r)), id)
	return keyring.JoinTokenInfo{ID: id}, notWithdrawn(err, id, s.node.JoinTokens())
}

func (c cli) joinToken(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("servers token", flag.ContinueOnError)
	ttl := fs.Duration("ttl", time.Hour, "")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	in := tokenRequest{ID: raft.ServerID(args[0]), TTL: *ttl}
	if err := c.call(ctx, http.MethodPost, "/v1/tokens", in, &in); err != nil {
		return err
	}
	fmt.Fprintln(c.out, line(in.Token))
	return nil
}

func (c cli) joinTokens(ctx context.Context, args []string) error {
	if _, err := flags(flag.NewFlagSet("servers tokens", flag.ContinueOnError), args, 0); err != nil {
		return err
	}
	var all []keyring.JoinTokenInfo
	if err := c.call(ctx, http.MethodGet, "/v1/tokens", nil, &all); err != nil {
		return err
	}
	for _, t := range all {
		used := "unused"
		if t.Used {
			used = "used"
		}
		fmt.Fprintf(c.out, "%s  for %s  until %s  %s\n", line(t.ID), line(string(t.Server)), t.End.UTC().Format(time.RFC3339), used)
	}
	return nil
}

func (c cli) withdrawToken(ctx context.Context, args []string) error {
	args, err := flags(flag.NewFlagSet("servers withdraw", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	if err := c.call(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(args[0]), nil, &keyring.JoinTokenInfo{}); err != nil {
		return err
	}
	fmt.Fprintln(c.out, "nobody can join with that token any more")
	return nil
}
