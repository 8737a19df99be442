package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"example.com/keyring/admin"
	"example.com/keyring/node"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

// begin has the API serve, when its node has started. Whoever is no workload may do all that package admin has: nobody else reaches this
// API, see local.
func (s *server) begin(n *node.Node) (err error) {
	s.node = n
	s.store.Connect(n.Keyring(), n.Apply)
	s.admin, err = admin.New(n, admin.Config{
		Authorize: func(r *http.Request) (string, error) {
			if err := s.person(r); err != nil {
				return "", err
			}
			return actor(r), nil
		},
		Cluster:     s.cluster.Name,
		URLs:        s.urls,
		Addr:        func(id raft.ServerID) string { return s.cluster.Servers[id].Raft },
		Records:     s.store,
		RotateEvery: s.every,
		Buttons:     s.clicks,
		Program:     s.program(),
		Logger:      s.log,
	})
	if err != nil {
		return err
	}
	close(s.started)
	return nil
}

// urls are those of the APIs of all servers.
func (s *server) urls() map[raft.ServerID]string {
	all := map[raft.ServerID]string{}
	for id, addrs := range s.cluster.Servers {
		all[id] = "http://" + addrs.HTTP
	}
	return all
}

// program is what package admin names in its commands.
func (s *server) program() admin.Program {
	dir := s.dir
	if regexp.MustCompile(`[^a-zA-Z0-9._/-]`).MatchString(dir) {
		dir = "'" + strings.ReplaceAll(dir, "'", `'\''`) + "'"
	}
	file := func(names ...string) string { return filepath.Join(append([]string{s.dir}, names...)...) }
	return admin.Program{
		Name: "controlplane", Server: defaultServer,
		Start:            "controlplane serve$EVERY " + dir + " $SERVER",
		StartWithOldKEKs: "controlplane serve -escrow RECIPIENT -identity FILE " + dir + " $SERVER",
		Recover:          "controlplane recover " + dir + " ID",
		Keystore:         file("$SERVER", "keystore"), Raft: file("$SERVER", "raft"),
		KEK: file("$SERVER.kek"), Certificate: file("$SERVER.pem"), CA: file("ca.pem"),
	}
}

// operators is what package admin serves, when the node has started.
func (s *server) operators(w http.ResponseWriter, r *http.Request) {
	if err := s.ready(); err != nil {
		fail(w, err)
		return
	}
	s.admin.ServeHTTP(w, r)
}

// status is a server as it sees itself.
type status struct {
	admin.Status
	Index   uint64 `json:"index"` // of the last log entry about secrets here
	Secrets int    `json:"secrets"`
}

// status is how this server is. With ?consistent it is the leader's, and not from before the request.
func (s *server) status(r *http.Request) (any, error) {
	consistent, err := flagOf(r, "consistent")
	if err != nil {
		return nil, err
	}
	if consistent {
		if err := s.isCurrent(r.Context()); err != nil {
			return nil, err
		}
	}
	return s.own(r.Context())
}

func (s *server) own(ctx context.Context) (status, error) {
	now := s.store.View()
	st, err := s.admin.Status(ctx)
	return status{st, now.Index(), now.Len()}, err
}

// isCurrent returns when this server, which leads, has everything that was put before the call.
func (s *server) isCurrent(ctx context.Context) error {
	if _, err := s.apply(ctx, command{}); !errors.Is(err, records.ErrNotFound) {
		return err
	}
	return nil
}

const watchPace = 20 * time.Millisecond

// watch streams this server's status, one JSON object now and one after each change, but not more
// often than watchPace. It begins when the server has started.
func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	select {
	case <-s.started:
	case <-r.Context().Done():
		return
	}
	err := s.person(r)
	if err == nil {
		err = parameters(r, nil)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	for pace := time.Tick(watchPace); ; {
		keys, secrets := s.node.Keyring().Changed(), s.store.Changed() // before the look: none is missed
		st, err := s.own(r.Context())
		if err == nil {
			err = out.Encode(st)
		}
		if err == nil {
			err = http.NewResponseController(w).Flush()
		}
		if err != nil {
			return
		}
		select {
		case <-keys:
		case <-secrets:
		case <-r.Context().Done():
			return
		}
		<-pace
	}
}
