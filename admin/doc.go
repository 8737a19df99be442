// Package admin gives the host of a keyring what operators expect of it: an API over HTTP, a page that shows whether all is well and which
// command helps if not, a client, and the commands themselves.
//
// It works for a *node.Node and for a *keyring.Keyring of a host with a raft of its own. A host mounts a [Handler]:
//
//	h, err := admin.New(n, admin.Config{ // or admin.ForKeyring(k, keyring.AddServerOptions{}) in the place of n
//		Authorize: func(r *http.Request) (string, error) { return operatorOf(r.TLS) },
//		URLs:      func() map[raft.ServerID]string { return urls },
//	})
//	if err != nil {
//		return err
//	}
//	mux.Handle("/keyring/", http.StripPrefix("/keyring", h))
//
// and hands the rest of its arguments to [Command] where an operator types one:
//
//	err := admin.Command(ctx, os.Args[2:], admin.CommandOptions{HTTP: withCertificate})
//	if err != nil {
//		fmt.Fprintln(os.Stderr, "kvd:", err)
//	}
//	os.Exit(admin.ExitStatus(err))
//
// Nobody is let in by default. Config.Authorize decides about each request, and its name for the sender is the actor of what the request
// changes, in Config.Audit of the keyring.
//
// A program calls the API with a [Client]. What each problem means, and what ends it, is in docs/problems.md and
// docs/operations.md of the repository. examples/controlplane is a service with all of it.
//
// # The API
//
// Bodies and answers are JSON. An answer that is no result has a status from 400 on, or 307 to the leader, and {"error": "..."}.
//
//	GET    /v1/status             this server, a Status
//	GET    /v1/cluster            all servers as this one sees them, an Overview
//	POST   /v1/keys               {"full", "compromised", "publish": "5m", "revoke": [ID]}: rotates
//	DELETE /v1/keys/ID            removes a key; ?force with what is sealed under it, ?now its file too
//	POST   /v1/keys/ID/adopt      takes in the key of a file
//	POST   /v1/rewrap             wraps the key files of this server under its present KEKs alone
//	POST   /v1/servers            {"id", "addr", "nonvoter"}: adds a server, or gives it another address
//	POST   /v1/servers/ID/promote gives it a vote, and /v1/servers/ID/demote takes it
//	DELETE /v1/servers/ID         removes a server; ?force also if a key is then held by too few
//	POST   /v1/leader             {"id"}: the leader hands over, to that voter or to any
//	GET    /v1/tokens             the join tokens that have not ended
//	POST   /v1/tokens             {"id", "ttl": "10m"}: makes one, a secret
//	DELETE /v1/tokens/TOKEN-ID    withdraws one
//	POST   /v1/backup             {"to": [RECIPIENT]}: a backup, followed by the trailers Backup-Sha256 and Backup-Signer, or Backup-Error
//	POST   /v1/backup/SHA256      says that the backup is safe
//
// What came of a request with status 500 is not known. After 503, or a redirect, it may be sent again. A backup is verified where its
// identities are, by the command verify or keyring.VerifyBackup: they never go to a server.
//
// # The commands
//
//	[-server URL] keys status [-json]       keys, servers, problems
//	[-server URL] keys rotate [-publish 5m] [-full] [-compromised]       make a new key; without -publish it signs at once: for emergencies
//	[-server URL] keys remove [-force] [-now] ID       re-encrypt the key's data, then remove it
//	[-server URL] keys adopt ID       adopt the key of a file that the keyring does not know
//	[-server URL] keys rewrap       rewrap that server's key files under its present KEKs
//	[-server URL] servers add [-addr HOST:PORT] [-nonvoter] ID       let a server join, or change its address
//	[-server URL] servers remove [-force] ID       remove it; refused while too few others hold a key
//	[-server URL] servers promote ID       give it a vote; it must hold every key
//	[-server URL] servers demote ID       take its vote away; it stays a member with its keys
//	[-server URL] servers lead [ID]       transfer the leadership to that server, or to any
//	[-server URL] servers token [-ttl 1h] ID       print a token with which that server may join
//	[-server URL] servers tokens       list the tokens that have not ended
//	[-server URL] servers withdraw TOKEN-ID       end a token
//	[-server URL] backup -to RECIPIENT,... FILE        back up everything, for age recipients; prints the SHA-256
//	verify -identity FILE [-sha256 SUM] [-signer KEY] [-cluster ID] BACKUP       check that a backup can be restored
//	restore -identity FILE [-sha256 SUM] [-signer KEY] [-cluster ID] [-unauthenticated] [-data-only] [-force] ... BACKUP       make the directory of a server
//	inspect [-kek FILE,...] KEYSTORE-DIR       list the files there; a star marks the KEKs that open a key
//
// URL is any server's. HOST:PORT alone is https, and on a loopback address http. backup writes a file that is complete, or none. A file
// FILE.*.part beside it is what backup leaves when the machine stops meanwhile: it is no backup, and may be deleted; the next
// backup there names it. For the cluster there is a backup once its file is synced and has its name. verify and restore want to
// know whose a backup is: by the SHA-256 that backup has printed, by the signer, which keys status shows, or, for restore,
// -unauthenticated. With -data-only a restore is a drill: another cluster, whose tokens nobody else takes. inspect looks at the key files
// of a server, which may run. keys status ends within 5 seconds, also when the server that is asked takes connections and hangs.
//
// # What attackers get
//
// A page of another origin, and a page that frames this one, get nothing, GETs included. A body has a bound, and both a body and the
// taking of an answer have a time. Unknown parameters and members are errors, and so are paths that another program could read in another way.
// What servers and files say is shown without control characters in a terminal, and as text on the page.
package admin
