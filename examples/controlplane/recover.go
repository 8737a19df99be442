package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// recover makes a server that is stopped the only member of the cluster, with what it has, when a
// majority of the servers is gone for good. The others are added, start with empty directories, and join it.
func (c cli) recover(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("recover", flag.ContinueOnError)
	force := fs.Bool("force", false, "recover even if another server answers: never beside a cluster that runs")
	args, err := flags(fs, args, 2)
	if err != nil {
		return err
	}
	s, conf, err := newServer(args[0], raft.ServerID(args[1]), options{})
	if err != nil {
		return err
	}
	r, err := node.Recover(ctx, conf, node.RecoverOptions{Force: *force})
	if err != nil {
		return err
	}
	from := ""
	if !r.Time.IsZero() {
		from = r.Time.UTC().Format(" of 2006-01-02 15:04:05 MST")
	}
	fmt.Fprintf(c.out, "%s is the only member; everything after log index %d%s is lost, and %d keys are missing\n", s.id, r.Index, from, len(r.Missing))
	for _, m := range r.Missing {
		fmt.Fprintf(c.out, "missing: %s", m.ID)
		if m.Err != nil {
			fmt.Fprint(c.out, ": ", flat(m.Err.Error()))
		}
		if m.Removed {
			fmt.Fprint(c.out, ": it may come back from its .removed file, which is here, when the server starts")
		}
		fmt.Fprintln(c.out)
	}
	var others, dirs []string
	for _, id := range s.others() {
		others = append(others, string(id))
		dirs = append(dirs, filepath.Join(args[0], string(id)))
	}
	if len(others) > 0 {
		fmt.Fprintf(c.out, "start %s; before you start %s again, empty %s, because their data would make a second cluster, and add them with servers add\n",
			s.id, strings.Join(others, " and "), strings.Join(dirs, " and "))
	}
	return nil
}

// others are the servers but for this one, sorted.
func (s *server) others() []raft.ServerID {
	all := slices.Sorted(maps.Keys(s.cluster.Servers))
	return slices.DeleteFunc(all, func(id raft.ServerID) bool { return id == s.id })
}
