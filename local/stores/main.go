// Servers that models are fetched from in tests: the reference registry of OCI artifacts, and a small S3 that checks
// signatures. One program, for they share most of what they are built of.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/auth/token"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"
)

const usage = `usage: stores registry serve CONFIG.YML
       stores s3 ADDRESS BUCKET ACCESS-KEY SECRET-KEY`

func main() {
	switch {
	case len(os.Args) > 2 && os.Args[1] == "registry":
		// It reads os.Args itself.
		os.Args = os.Args[1:]
		fail(registry.RootCmd.Execute())
	case len(os.Args) == 6 && os.Args[1] == "s3":
		backend := s3mem.New()
		fail(backend.CreateBucket(context.Background(), os.Args[3]))
		keys := map[string]string{os.Args[4]: os.Args[5]}
		server := gofakes3.New(backend, gofakes3.WithV4Auth(keys))
		fail(http.ListenAndServe(os.Args[2], server.Server()))
	default:
		fail(fmt.Errorf("%s", usage))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
