package admin

// The commands about servers and join tokens.

import (
	"context"
	"flag"
	"fmt"
	"io"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

func (c *cli) addServer(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("servers add", flag.ContinueOnError)
	addr, nonvoter := fs.String("addr", "", "its raft `address`, HOST:PORT"), fs.Bool("nonvoter", false, "it stays without a vote")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	add := c.client.AddServer
	if *nonvoter {
		add = c.client.AddNonvoter
	}
	at, err := add(ctx, raft.ServerID(args[0]), *addr)
	if err == nil {
		fmt.Fprintf(c.out, "%s may join, and is expected at %s\n", line(args[0]), line(at))
	}
	return err
}

func (c *cli) removeServer(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("servers remove", flag.ContinueOnError)
	force := fs.Bool("force", false, "remove it even if too few others hold a key")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	err = c.client.RemoveServer(ctx, raft.ServerID(args[0]), keyring.RemoveServerOptions{Force: *force})
	if err == nil {
		fmt.Fprintf(c.out, "%s is removed; delete its directory\n", line(args[0]))
	}
	return err
}

func (c *cli) promoteServer(ctx context.Context, args []string) error {
	args, err := flags(flag.NewFlagSet("servers promote", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	if err := c.client.PromoteServer(ctx, raft.ServerID(args[0])); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s has a vote\n", line(args[0]))
	return nil
}

func (c *cli) demoteServer(ctx context.Context, args []string) error {
	args, err := flags(flag.NewFlagSet("servers demote", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	if err := c.client.DemoteServer(ctx, raft.ServerID(args[0])); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "%s has no vote\n", line(args[0]))
	return nil
}

// transfer takes no argument for any server.
func (c *cli) transfer(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("servers lead", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); err == nil && fs.NArg() == 0 {
		args = append(args, "")
	}
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	if err := c.client.TransferLeadership(ctx, raft.ServerID(args[0])); err != nil {
		return err
	}
	fmt.Fprintln(c.out, "another server leads now")
	return nil
}

func (c *cli) joinToken(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("servers token", flag.ContinueOnError)
	ttl := fs.Duration("ttl", time.Hour, "the `time` for which the token is valid; an hour without it")
	args, err := flags(fs, args, 1)
	if err != nil {
		return err
	}
	token, err := c.client.JoinToken(ctx, raft.ServerID(args[0]), *ttl)
	if err == nil {
		fmt.Fprintln(c.out, line(token))
	}
	return err
}

func (c *cli) joinTokens(ctx context.Context, args []string) error {
	if _, err := flags(flag.NewFlagSet("servers tokens", flag.ContinueOnError), args, 0); err != nil {
		return err
	}
	all, err := c.client.JoinTokens(ctx)
	if err != nil {
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

func (c *cli) withdrawToken(ctx context.Context, args []string) error {
	args, err := flags(flag.NewFlagSet("servers withdraw", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	if err := c.client.WithdrawJoinToken(ctx, args[0]); err != nil {
		return err
	}
	fmt.Fprintln(c.out, "nobody can join with that token any longer")
	return nil
}
